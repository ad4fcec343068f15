"""Engines that compute the network for detection on a CPU in place of XLA: OpenVINO, ONNX Runtime.

They compute the same network, as the ONNX graph of `models.onnx_graph`, with kernels of their own.
"""

import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from jax.sharding import Mesh

from flair_jax.errors import UserError
from flair_jax.inference.predictor import Model

JAX = "jax"
ENGINES = ("auto", JAX, "openvino", "onnxruntime")
PRECISIONS = ("float32", "bfloat16")
# (N, H, W, bands) uint8 -> logits (N, H, W, classes) float32, or classes (N, H, W) uint8
Engine = Callable[[np.ndarray], np.ndarray]


def choose(name: str, mesh: Mesh, precision: str) -> tuple[str, str]:
    """The engine to take, and a note to print.

    Args:
        name: of `ENGINES`. "auto" is OpenVINO on a CPU if it is installed, and JAX otherwise.
        mesh: the devices.
        precision: of `PRECISIONS`.

    Raises:
        UserError: the engine is not installed, or does not have this precision, or the devices are
            no CPU.
    """
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    if name == "auto":
        if not on_cpu or mesh.size > 1:
            return JAX, ""
        if is_installed("openvino"):
            return "openvino", ""
        return JAX, "OpenVINO would be faster on this CPU: pip install 'flair-jax[cpu]'"
    if name != JAX:
        if not on_cpu:
            raise UserError(
                f"--engine={name} computes on a CPU, and JAX has found {mesh.devices.flat[0]}: "
                "leave it out"
            )
        if not is_installed(name):
            raise UserError(
                f"--engine={name} is not installed: pip install 'flair-jax[cpu]', or leave it out"
            )
    if name == "onnxruntime" and precision != "float32":
        raise UserError(
            f"--engine=onnxruntime computes in float32 only, not in {precision}: give "
            "--precision=float32, or another --engine"
        )
    return name, ""


def is_installed(name: str) -> bool:
    """Whether an engine can be used, with the package that writes its graph."""
    return all(importlib.util.find_spec(package) for package in (name, "onnx"))


# Of a process that detects on two cores: GB without tiles, and bytes for each pixel of a batch that
# the network takes.
_MEMORY = {
    (JAX, "float32"): (0.8, 335),
    (JAX, "bfloat16"): (0.8, 335),
    ("openvino", "float32"): (1.0, 360),
    ("openvino", "bfloat16"): (1.0, 195),
    ("onnxruntime", "float32"): (1.0, 645),
}


def pixels_within(memory: float, name: str, precision: str, of_classes: int) -> int:
    """Pixels of a batch of tiles with which a process on a CPU keeps within a limit of memory.

    Args:
        memory: the limit in GB.
        name, precision: of the engine.
        of_classes: bytes that are kept for each pixel of what is computed from the logits.
    """
    fixed, per_pixel = _MEMORY[name, precision]
    return max(0, int((memory - fixed) * 1e9 / (per_pixel + of_classes)))


def describe(name: str) -> str:
    """An engine with its version, such as "openvino 2026.4.1"."""
    return f"{name} {importlib.metadata.version(name)}"


def make(name: str, model: Model, precision: str, result: str) -> Engine:
    """An engine with a model in it.

    Args:
        name: "openvino" or "onnxruntime".
        model: without metadata.
        precision: of `PRECISIONS`.
        result: "logits", or "classes", which take less memory.
    """
    from flair_jax.models import onnx_graph

    weights = {
        key: np.asarray(array, np.float32)
        for key, array in {**model.params, **model.batch_stats}.items()
    }
    graph = onnx_graph.build(weights, model.spec, takes_uint8=True, result=result)
    content = graph.SerializeToString()
    if name == "openvino":
        return _OpenVino(content, precision)
    return _onnx_runtime(content)


def _openvino() -> Any:
    """The package openvino, without the message that its import sends to its makers.

    That message comes from a copy of this process, which JAX's threads do not survive.
    """
    telemetry = "openvino_telemetry"
    hidden = telemetry not in sys.modules
    if hidden:
        sys.modules[telemetry] = None  # type: ignore[assignment]
    try:
        return importlib.import_module("openvino")
    finally:
        if hidden:
            del sys.modules[telemetry]


class _OpenVino:
    """The graph compiled for the shape of the images, which is one for each raster."""

    def __init__(self, content: bytes, precision: str) -> None:
        self._core = _openvino().Core()
        self._content = content
        self._settings = {
            "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
            "PERFORMANCE_HINT": "LATENCY",
        }
        self._shape: tuple[int, ...] = ()
        self._compiled: Any = None

    def __call__(self, image: np.ndarray) -> np.ndarray:
        if image.shape != self._shape:
            self._compiled = None  # what it holds is freed
            self._shape, self._compiled = image.shape, self._compile(image.shape)
        return self._compiled(image)[0]

    def _compile(self, shape: tuple[int, ...]) -> Any:
        from openvino import Layout
        from openvino.preprocess import PrePostProcessor

        model = self._core.read_model(model=self._content)
        n, height, width, bands = shape
        model.reshape([n, bands, height, width])
        layouts = PrePostProcessor(model)
        layouts.input().tensor().set_layout(Layout("NHWC"))
        layouts.input().model().set_layout(Layout("NCHW"))
        if len(model.output().get_partial_shape()) == 4:
            layouts.output().model().set_layout(Layout("NCHW"))
            layouts.output().tensor().set_layout(Layout("NHWC"))
        return self._core.compile_model(layouts.build(), "CPU", self._settings)


def _onnx_runtime(content: bytes) -> Engine:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def infer(image: np.ndarray) -> np.ndarray:
        (result,) = session.run(None, {"image": np.ascontiguousarray(image.transpose(0, 3, 1, 2))})
        return result if result.ndim == 3 else np.ascontiguousarray(result.transpose(0, 2, 3, 1))

    return infer
