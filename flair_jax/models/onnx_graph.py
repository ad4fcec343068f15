"""The U-Net as an ONNX graph, written from its weights.

Images are (N, bands, height, width), the layout of ONNX's convolutions and of rasterio; sizes are
dynamic, heights and widths multiples of 32. Batch normalisations are folded into the convolutions
before them.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from flair_jax.models.layers import BatchNorm
from flair_jax.models.metadata_mlp import MetadataMLP
from flair_jax.models.resnet import STAGES
from flair_jax.models.spec import ModelSpec
from flair_jax.models.unet import DECODER_CHANNELS

OPSET = 17  # ONNX 1.12 of 2022: what ONNX Runtime 1.12, OpenVINO 2022.3 and QGIS's Deepness read
IR_VERSION = 8  # the format of that version
DEEPNESS_TILE = 512  # pixels, where the size of the training patches is not known
DEEPNESS_OVERLAP = 25  # per cent of a tile: 128 of 512 pixels
Weights = Mapping[str, np.ndarray]


class Graph:
    """Nodes and weights while they are collected. Methods return the name of their result."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, name: str, array: np.ndarray) -> str:
        """An array that is part of the file."""
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def node(self, kind: str, inputs: Sequence[str], **attributes: Any) -> str:
        """An operation with one result."""
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def convolution(self, x: str, name: str, norm: str = "", *, stride: int = 1) -> str:
        """A convolution, with its bias or with the batch normalisation that follows it.

        Args:
            x: its input.
            name: of the convolution, such as "encoder.conv1".
            norm: of the normalisation, if there is one.
            stride: 1 or 2.
        """
        kernel = self._weights[f"{name}.kernel"]
        if norm:
            scale, bias, mean, var = (
                self._weights[f"{norm}.{part}"].astype(np.float64)
                for part in ("scale", "bias", "mean", "var")
            )
            factor = scale / np.sqrt(var + BatchNorm.epsilon)
            kernel, bias = kernel * factor.astype(np.float32), bias - mean * factor
        else:
            bias = self._weights[f"{name}.bias"]
        size = kernel.shape[0]
        inputs = [
            x,
            self.constant(f"{name}.weight", kernel.transpose(3, 2, 0, 1)),
            self.constant(f"{name}.bias", bias.astype(np.float32)),
        ]
        return self.node(
            "Conv", inputs, kernel_shape=[size] * 2, pads=[size // 2] * 4, strides=[stride] * 2
        )

    def linear(self, x: str, name: str) -> str:
        """A linear layer."""
        kernel = self.constant(f"{name}.weight", self._weights[f"{name}.kernel"])
        bias = self.constant(f"{name}.bias", self._weights[f"{name}.bias"])
        return self.node("Gemm", [x, kernel, bias])

    def relu(self, x: str) -> str:
        """max(x, 0)."""
        return self.node("Relu", [x])


def build(weights: Weights, spec: ModelSpec, *, takes_uint8: bool, result: str) -> onnx.ModelProto:
    """The graph of a model.

    Args:
        weights: parameters and running statistics by dotted name.
        spec: of the model.
        takes_uint8: whether its input "image" is uint8 and is normalised in the graph; otherwise
            it is float32, normalised as the spec tells.
        result: its output: "logits" or "probabilities" (N, classes, height, width) float32, or the
            most probable "classes" (N, height, width) uint8, from 0.
    """
    graph = Graph(weights)
    image_type = TensorProto.UINT8 if takes_uint8 else TensorProto.FLOAT
    size: list[str | int | None] = ["batch", len(spec.bands), "height", "width"]
    inputs = [helper.make_tensor_value_info("image", image_type, size)]
    x = _normalised(graph, spec) if takes_uint8 else "image"
    *skips, x = _encoder(graph, x)
    if spec.takes_metadata:
        features = weights["enc.enc_mlp.0.kernel"].shape[0]
        inputs.append(
            helper.make_tensor_value_info("metadata", TensorProto.FLOAT, ["batch", features])
        )
        x = graph.node("Add", [x, _metadata_code(graph, spec)])
    x = graph.convolution(_decoder(graph, skips, x), "segmentation_head.0")
    shape: list[str | int | None] = ["batch", len(spec.nomenclature), "height", "width"]
    result_type = TensorProto.FLOAT
    if result == "classes":
        x = graph.node("ArgMax", [x], axis=1, keepdims=0)
        shape, result_type = ["batch", "height", "width"], TensorProto.UINT8
    last: dict[str, tuple[str, dict[str, Any]]] = {
        "logits": ("Identity", {}),
        "probabilities": ("Softmax", {"axis": 1}),
        "classes": ("Cast", {"to": result_type}),
    }
    kind, attributes = last[result]
    graph.nodes.append(helper.make_node(kind, [x], [result], name=result, **attributes))
    return helper.make_model(
        helper.make_graph(
            graph.nodes, "unet", inputs,
            [helper.make_tensor_value_info(result, result_type, shape)],
            graph.initializers,
        ),
        producer_name="flair-jax", ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )  # fmt: skip


def _normalised(graph: Graph, spec: ModelSpec) -> str:
    """As `preprocess.normalise`."""
    x = graph.node("Cast", ["image"], to=TensorProto.FLOAT)
    if spec.normalization == "scaling":
        return graph.node("Div", [x, graph.constant("highest", np.full(1, 255, np.float32))])
    means, stds = (
        graph.constant(name, np.asarray(values, np.float32).reshape(1, -1, 1, 1))
        for name, values in (("means", spec.means), ("stds", spec.stds))
    )
    return graph.node("Div", [graph.node("Sub", [x, means]), stds])


def _encoder(graph: Graph, x: str) -> list[str]:
    """As `resnet.ResNet34Encoder`: five maps, finest first."""
    features = [graph.relu(graph.convolution(x, "encoder.conv1", "encoder.bn1", stride=2))]
    x = graph.node("MaxPool", features, kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2])
    for number, (_, blocks) in enumerate(STAGES, start=1):
        for i in range(blocks):
            block = f"encoder.layer{number}.{i}"
            stride = 2 if i == 0 and number > 1 else 1
            y = graph.relu(graph.convolution(x, f"{block}.conv1", f"{block}.bn1", stride=stride))
            y = graph.convolution(y, f"{block}.conv2", f"{block}.bn2")
            if stride == 2:
                down = f"{block}.downsample"
                x = graph.convolution(x, f"{down}.0", f"{down}.1", stride=2)
            x = graph.relu(graph.node("Add", [y, x]))
        features.append(x)
    return features


def _decoder(graph: Graph, skips: list[str], x: str) -> str:
    """As `unet.Decoder`."""
    scales = graph.constant("scales", np.array([1, 1, 2, 2], np.float32))
    for i, skip in zip(range(len(DECODER_CHANNELS)), [*reversed(skips), ""], strict=True):
        x = graph.node(
            "Resize", [x, "", scales], mode="nearest", nearest_mode="floor",
            coordinate_transformation_mode="asymmetric",
        )  # fmt: skip
        if skip:
            x = graph.node("Concat", [x, skip], axis=1)
        for part in ("conv1", "conv2"):
            block = f"decoder.blocks.{i}.{part}"
            x = graph.relu(graph.convolution(x, f"{block}.0", f"{block}.1"))
    return x


def _metadata_code(graph: Graph, spec: ModelSpec) -> str:
    """As `metadata_mlp.MetadataMLP` and `unet.UNet.fuse`: what is added to the bottleneck."""
    x = "metadata"
    for i in range(len(MetadataMLP.widths)):
        x = graph.relu(graph.linear(x, f"enc.enc_mlp.{3 * i}"))
    if spec.metadata_fusion == "channels":
        x, axes = graph.linear(x, "enc_channels"), [2, 3]  # (N, channels, 1, 1)
    else:
        axes = [1, 3]  # (N, 1, rows, 1)
    return graph.node("Unsqueeze", [x, graph.constant("axes", np.array(axes, np.int64))])


def describe(model: onnx.ModelProto, spec: ModelSpec, *, for_deepness: bool) -> None:
    """Adds to a model's metadata what its inputs and outputs are, each value as JSON."""
    means, stds = normalization(spec)
    values: dict[str, Any] = {
        "bands": spec.bands,
        "classes": spec.nomenclature.names,
        "means": means,
        "stds": stds,
        "pixel_size": spec.pixel_size,
        "synthetic": spec.synthetic,
    }
    if for_deepness:
        # Names and units of its documentation, "Adding metadata to ONNX model", version 0.7: it
        # divides by 255, then subtracts the means and divides by the standard deviations.
        values |= {
            "model_type": "Segmentor",
            "class_names": dict(enumerate(spec.nomenclature.names)),
            "resolution": 100 * spec.pixel_size,  # centimetres
            "tiles_size": max(spec.patch_size) or DEEPNESS_TILE,
            "tiles_overlap": DEEPNESS_OVERLAP,
            "standardization_mean": [mean / 255 for mean in means],
            "standardization_std": [std / 255 for std in stds],
        }
        if not spec.pixel_size:
            del values["resolution"]
    helper.set_model_props(model, {key: json.dumps(value) for key, value in values.items()})


def normalization(spec: ModelSpec) -> tuple[list[float], list[float]]:
    """What is subtracted from the bands' digital numbers, and what they are divided by then."""
    if spec.normalization == "scaling":
        return [0.0] * len(spec.bands), [255.0] * len(spec.bands)
    return list(spec.means), list(spec.stds)
