"""Export of a model: PyTorch weights, an ONNX file, a StableHLO program, a folder for the hub."""

import importlib.util
import os
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flair_jax.errors import UserError
from flair_jax.inference.loading import load, watches_ema
from flair_jax.interop import hub_folder
from flair_jax.models.functional import Arrays, abstract_model, forward
from flair_jax.models.spec import ModelSpec
from flair_jax.runtime.sharding import make_mesh
from flair_jax.weights import torch_weights

SUFFIXES = {
    "torch": (".safetensors", ".pth", ".pt"),
    "onnx": (".onnx",),
    "stablehlo": ("",),  # a folder
    "hub": ("",),
}
PLATFORMS = ("cpu", "cuda", "tpu")  # of a StableHLO program
PROGRAM, WEIGHTS = "program.stablehlo", "weights.safetensors"


def export(
    checkpoint: str,
    output: str,
    format: str,
    *,
    ema: bool | None = None,
    input: str = "uint8",
    result: str = "logits",
    deepness: bool = False,
    license: str = "",
) -> pathlib.Path:
    """Writes a checkpoint in another format, atomically.

    Args:
        checkpoint: see `loading.load`; of a run, its best one is taken.
        output: the file, or for "stablehlo" and "hub" the folder, to write.
        format: of `SUFFIXES`.
        ema: the moving average of the weights; None: see `loading.load`.
        input, result, deepness: of "onnx", see `write_onnx`.
        license: of "hub", see `hub_folder.write_hub_folder`.

    Returns:
        What was written.

    Raises:
        UserError: there is no checkpoint, `output` exists or has another suffix, or the format
            cannot hold the model.
    """
    path = pathlib.Path(output).expanduser()
    if path.exists():
        raise UserError(f"{path} exists: give another --output, or remove it")
    hub_folder.check_license(license)
    if format != "onnx" and (input != "uint8" or result != "logits" or deepness):
        raise UserError(
            f"--input, --result and --deepness are of --format=onnx, and not of --format={format}"
        )
    if deepness and result == "classes":
        raise UserError("--deepness writes probabilities, which the plug-in takes: omit --result")
    if license and format != "hub":
        raise UserError(f"--license is of --format=hub, and not of --format={format}")
    suffixes = SUFFIXES[format]
    if path.suffix not in suffixes:
        expected = " or ".join(suffixes) if suffixes != ("",) else "no suffix, as of a folder"
        raise UserError(f"--output={output}: --format={format} expects {expected}")
    ema = watches_ema(checkpoint) if ema is None else ema
    spec, params, batch_stats, step = load(checkpoint, make_mesh(), ema=ema)
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        if format == "torch":
            write_torch(partial, spec, params, batch_stats)
        elif format == "onnx":
            options: dict[str, Any] = {"result": result, "deepness": deepness}
            write_onnx(partial, spec, params, batch_stats, input=input, **options)
        elif format == "hub":
            metrics = hub_folder.known_scores(checkpoint, params, batch_stats, ema)
            hub_folder.write_hub_folder(
                partial, path.name, spec, params, batch_stats, step=step, ema=ema,
                license=license, metrics=metrics,
            )  # fmt: skip
        else:
            write_stablehlo(partial, spec, params, batch_stats)
        os.replace(partial, path)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)
        partial.unlink(missing_ok=True)
    return path


def write_torch(path: pathlib.Path, spec: ModelSpec, params: Arrays, batch_stats: Arrays) -> None:
    """Writes the state dict of segmentation-models-pytorch's U-Net.

    Raises:
        UserError: the model cannot be PyTorch's, or the file needs PyTorch.
    """
    if spec.metadata_fusion == "channels":
        raise UserError(
            "the PyTorch model has no channel fusion of metadata: this checkpoint cannot be "
            "exported"
        )
    tensors = torch_weights.state_dict_of(params, batch_stats)
    if path.suffix == ".safetensors":
        from safetensors.numpy import save_file

        save_file(tensors, path)
        return
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"writing a {path.suffix} file needs PyTorch: pip install 'flair-jax[torch]', or give "
            "a name that ends in .safetensors"
        ) from error
    torch.save({key: torch.tensor(value) for key, value in tensors.items()}, path)


def write_onnx(
    path: pathlib.Path,
    spec: ModelSpec,
    params: Arrays,
    batch_stats: Arrays,
    *,
    input: str = "uint8",
    result: str = "logits",
    deepness: bool = False,
) -> None:
    """Writes an ONNX file, see `onnx_graph.build`.

    Args:
        path: the file.
        spec, params, batch_stats: of the model.
        input: "uint8", normalised in the graph, or "float32", normalised before.
        result: "logits", "probabilities" or "classes".
        deepness: for the QGIS plug-in Deepness, which normalises itself: float32 in,
            probabilities out, and its keys in the file's metadata.

    Raises:
        UserError: the package onnx is missing, or the plug-in cannot feed the model.
    """
    try:
        import onnx

        from flair_jax.models import onnx_graph
    except ImportError as error:
        raise UserError(
            "--format=onnx needs the package onnx: pip install 'flair-jax[export]'"
        ) from error
    if deepness and spec.takes_metadata:
        raise UserError("Deepness feeds no metadata, which this model takes")
    weights = {name: np.asarray(x, np.float32) for name, x in {**params, **batch_stats}.items()}
    takes_uint8 = input == "uint8" and not deepness
    result = "probabilities" if deepness else result
    model = onnx_graph.build(weights, spec, takes_uint8=takes_uint8, result=result)
    onnx_graph.describe(model, spec, for_deepness=deepness)
    onnx.checker.check_model(model, full_check=True)
    onnx.save_model(model, path)


def write_stablehlo(
    path: pathlib.Path, spec: ModelSpec, params: Arrays, batch_stats: Arrays
) -> None:
    """Writes a folder that JAX can load without this package.

    It holds a program for all of `PLATFORMS`, of any batch and of heights and widths that are
    multiples of 32; the weights; and `model.json`:

        program = jax.export.deserialize(bytearray(open("program.stablehlo", "rb").read()))
        weights = safetensors.numpy.load_file("weights.safetensors")
        probabilities = program.call(weights, {"image": image})

    The three lines need JAX, flatbuffers and safetensors. The image is (N, H, W, bands) uint8; a
    model with metadata takes "metadata" (N, numbers) float32 beside it. Probabilities are (N, H,
    W, classes) float32.
    """
    from safetensors.numpy import save_file

    if not importlib.util.find_spec("flatbuffers"):
        raise UserError(
            "--format=stablehlo needs the package flatbuffers: pip install 'flair-jax[export]'"
        )
    weights = {name: np.asarray(x, np.float32) for name, x in {**params, **batch_stats}.items()}
    graphdef = abstract_model(spec)[0]

    def infer(weights: Arrays, batch: Arrays) -> jax.Array:
        parts, statistics = (
            {name: weights[name] for name in part} for part in (params, batch_stats)
        )
        logits = forward(graphdef, spec, parts, statistics, batch)
        return jax.nn.softmax(logits.astype(jnp.float32))

    n, h, w = jax.export.symbolic_shape("n, h, w")
    size = (512, 512) if spec.metadata_fusion == "rows" else (32 * h, 32 * w)
    batch = {"image": jax.ShapeDtypeStruct((n, *size, len(spec.bands)), jnp.uint8)}
    if spec.takes_metadata:
        features = weights["enc.enc_mlp.0.kernel"].shape[0]
        batch["metadata"] = jax.ShapeDtypeStruct((n, features), jnp.float32)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), weights)
    program = jax.export.export(jax.jit(infer), platforms=PLATFORMS)(shapes, batch)
    path.mkdir()
    (path / PROGRAM).write_bytes(program.serialize())
    save_file(weights, path / WEIGHTS)
    spec.save(path)
