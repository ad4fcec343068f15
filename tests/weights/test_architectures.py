"""Architectures as their tensors name them: a few names of each, and the shape that tells sizes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from flair_jax import config as configuration
from flair_jax.errors import UserError
from flair_jax.interop.import_torch import import_weights
from flair_jax.models.functional import split_model
from flair_jax.models.spec import ModelSpec
from flair_jax.runtime.sharding import make_mesh
from flair_jax.training.initialization import initial_weights
from flair_jax.weights.architectures import LOADABLE, check_network
from flair_jax.weights.torch_spec import spec_for
from flair_jax.weights.torch_weights import match


def named(*names, **shapes):
    """Tensors of these names; `{a..b}` in one stands for all numbers from a to b."""
    tensors = {}
    for name in names:
        expanded = [name]
        while "{" in expanded[0]:
            span = expanded[0].partition("{")[2].partition("}")[0]
            first, last = map(int, span.split(".."))
            expanded = [
                e.replace(f"{{{span}}}", str(n), 1)
                for e in expanded
                for n in range(first, last + 1)
            ]
        tensors |= {e: np.zeros(1, np.float32) for e in expanded}
    for name, shape in shapes.items():
        tensors[name] = np.zeros(shape, np.float32)
    return tensors


def resnet(prefix, depths, bottleneck=False):
    names = [
        f"{prefix}layer{stage}.{block}.conv{i}.weight"
        for stage, depth in enumerate(depths, 1)
        for block in range(depth)
        for i in range(1, 3 + bottleneck)
    ]
    return {name: np.zeros((64, 64, 1, 1), np.float32) for name in names}


UNET = named("decoder.blocks.{0..4}.conv1.0.weight", "segmentation_head.0.weight")
HUB = "model.encoders.AERIAL_RGBI.seg_model."
HUB_UPERNET = named(
    "model.main_decoders.AERIAL_LABEL-COSIA.seg_model.decoder.fpn_lateral_blocks.0.conv_norm_relu.0.weight",
    "model.main_decoders.AERIAL_LABEL-COSIA.seg_model.segmentation_head.0.weight",
    "model.fusion_handler.conv_f.0.weight",
)


def swin(width, depth, prefix=HUB):
    return named(
        f"{prefix}model.layers_2.blocks.{{0..{depth - 1}}}.attn.relative_position_bias_table",
        **{f"{prefix}model.patch_embed.proj.weight": (width, 3, 4, 4)},
    )


def convnextv2(width, prefix=HUB):
    return named(
        f"{prefix}model.stages_2.blocks.{{0..8}}.mlp.grn.weight",
        f"{prefix}model.stages_2.blocks.0.conv_dw.weight",
        **{f"{prefix}model.stem_0.weight": (width, 3, 4, 4)},
    )


MITB5 = named(
    *(f"encoder.block{i}.{{0..{n - 1}}}.attn.kv.weight" for i, n in enumerate((3, 6, 40, 3), 1)),
    **{"encoder.patch_embed1.proj.weight": (64, 3, 7, 7)},
)
NETWORKS = {
    "a UPerNet with a Swin-T encoder": swin(96, 6) | HUB_UPERNET,
    "a UPerNet with a Swin-B encoder": swin(128, 18) | HUB_UPERNET,
    "a UPerNet with a Swin-L encoder": swin(192, 18) | HUB_UPERNET,
    "a UPerNet with a ConvNeXtV2-Tiny encoder": convnextv2(96) | HUB_UPERNET,
    "a UPerNet with a ConvNeXtV2-Base encoder": convnextv2(128) | HUB_UPERNET,
    "a U-Net with a MiT-B5 encoder": MITB5 | UNET,
    "a U-Net with a ResNet50 encoder": resnet("encoder.", (3, 4, 6, 3), True) | UNET,
    "a U-Net with a ResNet18 encoder": resnet("encoder.", (2, 2, 2, 2)) | UNET,
    "a U-Net with a ResNet of 3-4-5-3 blocks encoder": resnet("encoder.", (3, 4, 5, 3)) | UNET,
    "a U-Net with an EfficientNet encoder": named("encoder._conv_stem.weight") | UNET,
    "a U-Net with an unknown encoder": named("encoder.blocks.0.weight") | UNET,
    "a U-Net++ with a ResNet34 encoder": resnet("encoder.", (3, 4, 6, 3))
    | named("decoder.blocks.x_0_0.conv1.0.weight"),
    "a DeepLabV3 with a ResNet34 encoder": resnet("encoder.", (3, 4, 6, 3))
    | named("decoder.aspp.convs.0.0.weight"),
    "a DeepLabV3+ with a ResNet34 encoder": resnet("encoder.", (3, 4, 6, 3))
    | named("decoder.aspp.0.convs.0.0.weight"),
    "a DeepLabV3 with a ResNet101 encoder": resnet("backbone.", (3, 4, 23, 3), True)
    | named("classifier.0.convs.0.0.weight"),
    "a SegFormer with a MiT encoder": named(
        "segformer.encoder.patch_embeddings.0.proj.weight", "decode_head.linear_c.0.proj.weight"
    ),
    "a ViT without a known decoder": named("cls_token", "pos_embed", "blocks.0.attn.qkv.weight"),
    "an unknown network, with the tensors a.b, c, d": named("a.b", "c", "d"),
    "an unknown network, with the tensors x0, x1, x2, x3 and 5 more": named("x{0..8}"),
}


SPEC = ModelSpec.from_config(configuration.default(), (64, 64))
_, PARAMS, BATCH_STATS = split_model(SPEC.build_model())
LIKE = {**PARAMS, **BATCH_STATS}


@pytest.mark.parametrize("name", NETWORKS)
def test_other_architectures_are_named_at_every_door(tmp_path, name):
    file = tmp_path / "w.safetensors"
    save_file(NETWORKS[name], file)

    def start(**sources):
        sources = {"init_from": "", "encoder_weights": ""} | sources
        initial_weights(PARAMS, BATCH_STATS, SPEC, mesh=make_mesh(), **sources)

    for door in (
        lambda: import_weights(str(file), str(tmp_path / "run")),
        lambda: start(encoder_weights=str(file)),
        lambda: start(init_from=str(file)),
    ):
        with pytest.raises(UserError) as error:
            door()
        assert str(error.value) == f"{file} is {name}. {LOADABLE}"


PARTS = (
    "model", "module", "seg_model", "encoder", "encoders", "decoder", "main_decoders",
    "AERIAL_RGBI", "AERIAL_LABEL-COSIA", "fusion_handler", "layer1", "layer3", "0", "33", "conv1",
    "conv3", "x_0_0", "bn1", "weight", "running_var", "patch_embed", "patch_embed1", "block1",
    "attn", "kv", "grn", "stages_2", "stem_0", "relative_position_bias_table", "layers_2",
    "segmentation_head", "classifier", "enc", "enc_mlp", "criterion", "num_batches_tracked", "",
)  # fmt: skip
KEYS = st.lists(st.sampled_from(PARTS), min_size=1, max_size=6).map(".".join)
ARRAYS = st.lists(st.integers(0, 3), max_size=5).map(lambda shape: np.zeros(shape, np.float32))


@settings(max_examples=500, deadline=None)
@given(st.dictionaries(KEYS, ARRAYS, min_size=1, max_size=12))
def test_any_other_tensors_are_refused_in_one_sentence(tensors):
    for name in ("w.pth", "FLAIR-INC_rgb_12cl_w.pth"):
        with pytest.raises(UserError) as error:
            spec_for(name, tensors)
        assert str(error.value).startswith(name)
        assert "\n" not in str(error.value)
    for like in (LIKE, {k: v for k, v in LIKE.items() if k.startswith("encoder.")}):
        for partial in (False, True):
            with pytest.raises(UserError, match=r"^w.pth "):
                match(tensors, like, "w.pth", partial=partial)


def test_what_can_be_loaded():
    check_network(resnet("encoder.", (3, 4, 6, 3)) | UNET, "w")
    check_network(resnet("encoder.", (3, 4, 6, 3)), "w", bare=True)
    with pytest.raises(UserError, match=r"w is a bare ResNet34, .*--config.encoder_weights=w"):
        check_network(resnet("encoder.", (3, 4, 6, 3)), "w")
    with pytest.raises(UserError, match=r"w is a complete U-Net .* config.init_from"):
        check_network(resnet("encoder.", (3, 4, 6, 3)) | UNET, "w", bare=True)
