"""Time of counting confusion matrices, compared with scikit-learn as the reference uses it.

    pip install -e . scikit-learn
    python benchmarks/scoring.py [--output=FILE.json]

Both count the same synthetic labels and predictions, alternating. With the extra `tpu` the counting
function is also compiled for a TPU, and its program is searched for gathers and scatters.
"""

import argparse
import importlib.util
import os
import re
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding
from record import write_record
from sklearn.metrics import confusion_matrix

from flair_jax.aot.topologies import ENVIRONMENT, topology_devices
from flair_jax.evaluation.metrics import confusion_matrices
from flair_jax.models.ops import cpu, tpu

CLASSES, SIDE = 13, 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", help="JSON file to write")
    parser.add_argument("--patches", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    jax.config.update("jax_platforms", "cpu")
    rng = np.random.default_rng(0)
    shape = args.patches, SIDE, SIDE
    labels = rng.integers(0, CLASSES, shape, dtype=np.uint8)
    wrong = rng.integers(0, CLASSES, shape, dtype=np.uint8)
    predictions = np.where(rng.random(shape) < 0.7, labels, wrong)
    count = jax.jit(lambda t, p, v: confusion_matrices(t, p, v, CLASSES, cpu))
    arrays = jnp.asarray(labels), jnp.asarray(predictions), jnp.ones(args.patches, bool)

    def ours() -> np.ndarray:
        return np.asarray(count(*arrays))

    def peer() -> np.ndarray:
        pairs = zip(labels, predictions, strict=True)
        every = range(CLASSES)
        return np.stack([confusion_matrix(t.ravel(), p.ravel(), labels=every) for t, p in pairs])

    np.testing.assert_array_equal(ours(), peer())
    seconds: dict[str, list[float]] = {"flair-jax": [], "peer": []}
    for _ in range(args.rounds):
        seconds["flair-jax"].append(timed(ours))
        seconds["peer"].append(timed(peer))
    results = {
        f"ms a patch, {name}": 1000 * statistics.median(values) / args.patches
        for name, values in seconds.items()
    }
    results["ratio"] = results["ms a patch, peer"] / results["ms a patch, flair-jax"]
    if importlib.util.find_spec("libtpu"):
        results["gathers and scatters in its TPU program"] = indexed_on_tpu(arrays)
    for what, value in results.items():
        print(f"{what}: {value:.4g}")
    if args.output:
        write_record(args.output, args, results, ("scikit-learn",))


def timed(call: Callable[[], np.ndarray]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def indexed_on_tpu(arrays: tuple[jax.Array, ...]) -> int:
    """Number of gathers and scatters in the counting program compiled for a v5e chip."""
    chip = SingleDeviceSharding(topology_devices("v5e:2x2")[0])
    count = jax.jit(lambda t, p, v: confusion_matrices(t, p, v, CLASSES, tpu), in_shardings=chip)
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays]
    program = count.trace(*shapes).lower(lowering_platforms=("tpu",)).compile().as_text() or ""
    return len(re.findall(r" (?:gather|scatter)\(", program))


if __name__ == "__main__":
    main()
