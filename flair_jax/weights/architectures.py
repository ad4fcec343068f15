"""Recognition of a network's architecture by the names and shapes of its tensors."""

import re
from collections.abc import Iterator, Mapping

import numpy as np

from flair_jax.errors import UserError

LOADABLE = (
    "What can be loaded: a U-Net with a ResNet34 encoder, of segmentation-models-pytorch, of IGN's "
    "FLAIR-INC files (...resnet34-unet) or of FLAIR-HUB's code (resnet34-unet, aerial images "
    "alone); and for config.encoder_weights a bare ResNet34"
)
# A regular expression that a tensor's name has, and what it is a part of; the first one counts.
_DECODERS = (
    (r"^decoder\.blocks\.x_\d", "U-Net++"),
    (r"^decoder\.blocks\.\d+\.attention1\.attention\.", "U-Net with attention in its decoder"),
    (r"^decoder\.(center\.top_conv|blocks\.\d+\.SE_)", "MAnet"),
    (r"^decoder\.blocks\.\d+\.block\.", "LinkNet"),
    (r"^decoder\.center\.", "U-Net with a centre block"),
    (r"^decoder\.blocks\.\d+\.conv1\.", "U-Net"),
    (r"^decoder\.aspp\.\d|^decoder\.block[12]\.", "DeepLabV3+"),
    (r"^decoder\.aspp\.|^classifier\.0\.convs\.", "DeepLabV3"),
    (r"(fpn_lateral_blocks|fpn_convs|lateral_convs|fpn_stages|psp_modules)\.", "UPerNet"),
    (r"^decoder\.psp\.", "PSPNet"),
    (r"^decoder\.fpa\.", "PAN"),
    (r"^decoder\.seg_blocks\.", "FPN"),
    (r"(mlp_stage|linear_c\d?|linear_fuse)\.", "SegFormer"),
    (r"^decoder\.reassemble_blocks\.", "DPT"),
    (r"^classifier\.[04]\.", "FCN"),
    (r"(transformer_module|pixel_decoder|mask_embed)", "Mask2Former"),
)
_ENCODERS = (
    (r"(temporal_encoder|in_conv\.conv\.conv|temporal_aggregator)", "U-TAE"),
    (r"(_depthwise_conv|_conv_stem|conv_stem)", "EfficientNet"),
    (r"(\.grn\.|\.grn_)", "ConvNeXtV2"),
    (r"attn\.(logit_scale|cpb_mlp)", "Swin V2"),
    (r"relative_position_bias_table", "Swin"),
    (
        r"(block\d+\.\d+\.attn\.kv|attention\.self\.sr\.|patch_embed\d\.|patch_embeddings\.\d\.)",
        "MiT",
    ),
    (r"(conv_dw|dwconv)\.", "ConvNeXt"),
    (r"(cls_token|pos_embed|attn\.qkv|attention\.attention\.query)", "ViT"),
    (r"denseblock\d", "DenseNet"),
    (r"features\.\d+\.conv\.\d\.\d\.", "MobileNetV2"),
    (r"features\.\d+\.(weight|bias)$", "VGG"),
    (r"(stage[234]\.\d+\.(branches|fuse_layers))", "HRNet"),
    (r"(\.s\d\.b\d\.conv)", "RegNet"),
    (r"layer1\.\d+\.(se_module|se\.)", "SE-ResNet"),
    (r"conv1\.0\.weight$", "ResNet with a deep stem"),
    (r"layer1\.\d+\.conv1\.", "ResNet"),
)
_RESNETS: dict[tuple[int, ...], str] = {  # blocks of the four stages, whether they are bottlenecks
    (2, 2, 2, 2, False): "ResNet18",
    (3, 4, 6, 3, False): "ResNet34",
    (3, 4, 6, 3, True): "ResNet50",
    (3, 4, 23, 3, True): "ResNet101",
    (3, 8, 36, 3, True): "ResNet152",
}
_SWINS = {(96, 6): "Swin-T", (96, 18): "Swin-S", (128, 18): "Swin-B", (192, 18): "Swin-L"}
_CONVNEXTS = {
    40: "Atto",
    48: "Femto",
    64: "Pico",
    80: "Nano",
    96: "Tiny",
    128: "Base",
    192: "Large",
}
_MITS: dict[tuple[int, ...], str] = {
    (2, 2, 2, 2, 32): "MiT-B0",
    (2, 2, 2, 2, 64): "MiT-B1",
    (3, 4, 6, 3, 64): "MiT-B2",
    (3, 4, 18, 3, 64): "MiT-B3",
    (3, 8, 27, 3, 64): "MiT-B4",
    (3, 6, 40, 3, 64): "MiT-B5",
}


def architecture(tensors: Mapping[str, np.ndarray]) -> tuple[str, str]:
    """Names of decoder and encoder, "" for one that is not there or not known.

    Args:
        tensors: by the network's own names, see `torch_weights.network_tensors`.
    """
    decoder = _first(_DECODERS, tensors)
    encoder = _first(_ENCODERS, [name for name in tensors if not name.startswith("decoder.")])
    if encoder == "ResNet":
        encoder = _resnet(tensors)
    elif encoder == "Swin":
        key = (
            _width(tensors, "patch_embed"),
            _depths(tensors, r"layers[._](\d)\.blocks\.(\d+)")[2],
        )
        encoder = _SWINS.get(key, encoder)
    elif encoder.startswith("ConvNeXt"):
        stages = _depths(tensors, r"stages[._](\d)\.(?:blocks\.|layers\.)?(\d+)\.")
        size = _CONVNEXTS.get(_width(tensors, "stem|downsample_layers|embeddings"), "")
        size = "Small" if size == "Tiny" and stages[2] > 9 else size
        encoder += f"-{size}" if size else ""
    elif encoder == "MiT":
        depths = _depths(tensors, r"block(\d)\.(\d+)\.", first=1)
        encoder = _MITS.get((*depths, _width(tensors, "patch_embed1")), encoder)
    return decoder, encoder


def check_network(tensors: Mapping[str, np.ndarray], source: str, *, bare: bool = False) -> None:
    """Refuses tensors that are of no U-Net with a ResNet34 encoder.

    Args:
        tensors: by the network's own names.
        source: the file, for the message.
        bare: whether a ResNet34 alone is wanted.

    Raises:
        UserError: they are another network's; the message names its architecture as far as it
            shows.
    """
    decoder, encoder = architecture(tensors)
    if bare and encoder == "ResNet34" and not decoder:
        return
    if bare and (decoder, encoder) == ("U-Net", "ResNet34"):
        raise UserError(
            f"{source} is a complete U-Net and not a bare ResNet34: start from it with "
            f"config.init_from, without config.encoder_weights"
        )
    if not bare and (decoder, encoder) == ("U-Net", "ResNet34"):
        return
    if not bare and not decoder and encoder == "ResNet34":
        raise UserError(
            f"{source} is a bare ResNet34, which predicts no land cover: train from it with "
            f"--config.encoder_weights={source}"
        )
    if decoder and encoder:
        article = "an" if encoder[0] in "AEIOU" or encoder.startswith("MNF") else "a"
        name = f"a {decoder} with {article} {encoder} encoder"
    elif decoder or encoder:
        name = f"a {decoder or encoder}" + ("" if decoder else " without a known decoder")
        name += " with an unknown encoder" if decoder else ""
    else:
        listed = sorted(tensors)
        name = "an unknown network, with the tensors " + ", ".join(listed[:4])
        name += f" and {len(listed) - 4} more" if len(listed) > 4 else ""
    raise UserError(f"{source} is {name}. {LOADABLE}")


def _first(patterns: tuple[tuple[str, str], ...], names: Mapping | list[str]) -> str:
    for pattern, name in patterns:
        if any(re.search(pattern, tensor) for tensor in names):
            return name
    return ""


def _depths(tensors: Mapping[str, np.ndarray], pattern: str, first: int = 0) -> tuple[int, ...]:
    """The number of blocks of four stages; the pattern has the groups stage and block."""
    depths = [0, 0, 0, 0]
    for stage, block in _matches(tensors, pattern):
        if 0 <= stage - first < 4:
            depths[stage - first] = max(depths[stage - first], block + 1)
    return tuple(depths)


def _matches(tensors: Mapping[str, np.ndarray], pattern: str) -> Iterator[tuple[int, int]]:
    for name in tensors:
        if found := re.search(pattern, name):
            yield int(found[1]), int(found[2])


def _width(tensors: Mapping[str, np.ndarray], pattern: str) -> int:
    """The output channels of the first convolution with a name of this pattern; 0: none."""
    for name, tensor in tensors.items():
        if re.search(pattern, name) and np.ndim(tensor) == 4:
            return tensor.shape[0]
    return 0


def _resnet(tensors: Mapping[str, np.ndarray]) -> str:
    depths = _depths(tensors, r"^(?:encoder\.|backbone\.)?layer(\d)\.(\d+)\.", first=1)
    bottleneck = any(re.search(r"layer1\.0\.conv3\.", name) for name in tensors)
    name = _RESNETS.get((*depths, bottleneck), "")
    if not name:
        return f"ResNet of {'-'.join(map(str, depths))} blocks"
    second = next((t for n, t in tensors.items() if n.endswith("layer1.0.conv2.weight")), None)
    if bottleneck and second is not None and second.ndim == 4 and second.shape[:2] != (64, 64):
        return "ResNeXt or wide " + name
    return name
