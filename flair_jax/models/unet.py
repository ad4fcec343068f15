"""The FLAIR #1 baseline's U-Net: ResNet34 encoder, five decoder blocks, metadata at the bottom."""

import jax
import jax.numpy as jnp
from flax import nnx

from flair_jax.errors import UserError
from flair_jax.models.layers import BatchNorm, conv, kaiming_uniform_fan_in, xavier_uniform
from flair_jax.models.metadata_mlp import MetadataMLP
from flair_jax.models.resnet import ResNet34Encoder

DECODER_CHANNELS = (256, 128, 64, 32, 16)
STRIDE = 32  # the bottleneck's: sizes must be multiples of it


def upsample(x: jax.Array) -> jax.Array:
    """Nearest-neighbour doubling: (N, H, W, C) -> (N, 2 H, 2 W, C)."""
    n, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (n, h, 2, w, 2, c)).reshape(n, 2 * h, 2 * w, c)


class ConvBlock(nnx.List):
    """3x3 convolution, batch normalisation, ReLU; members 0 and 1, as in the state dict."""

    def __init__(
        self, in_channels: int, channels: int, *, dtype: jnp.dtype, rngs: nnx.Rngs
    ) -> None:
        super().__init__(
            [
                conv(
                    in_channels,
                    channels,
                    3,
                    kernel_init=kaiming_uniform_fan_in,
                    dtype=dtype,
                    rngs=rngs,
                ),
                BatchNorm(channels),
            ]
        )

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps (N, H, W, in) to (N, H, W, channels)."""
        convolve, normalise = self
        return jax.nn.relu(normalise(convolve(x), train))


class DecoderBlock(nnx.Module):
    """Doubles the map, appends the encoder's map of that size, convolves twice."""

    def __init__(
        self,
        in_channels: int,
        skip_channels: int,
        channels: int,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ) -> None:
        self.conv1 = ConvBlock(in_channels + skip_channels, channels, dtype=dtype, rngs=rngs)
        self.conv2 = ConvBlock(channels, channels, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, skip: jax.Array | None, train: bool) -> jax.Array:
        """Maps (N, H, W, in) and a skip (N, 2 H, 2 W, s) to (N, 2 H, 2 W, channels)."""
        x = upsample(x)
        if skip is not None:
            x = jnp.concatenate([x, skip], axis=-1)
        return self.conv2(self.conv1(x, train), train)


class Decoder(nnx.Module):
    """The five decoder blocks, coarsest first; the last has no skip."""

    def __init__(
        self, encoder_channels: tuple[int, ...], *, dtype: jnp.dtype, rngs: nnx.Rngs
    ) -> None:
        *skips, before = encoder_channels
        blocks = []
        for channels, skip in zip(DECODER_CHANNELS, [*reversed(skips), 0], strict=True):
            blocks.append(DecoderBlock(before, skip, channels, dtype=dtype, rngs=rngs))
            before = channels
        self.blocks = nnx.List(blocks)

    def __call__(self, features: list[jax.Array], train: bool) -> jax.Array:
        """Maps the encoder's maps, finest first, to (N, H, W, 16) at the input's size."""
        *skips, x = features
        for block, skip in zip(self.blocks, [*reversed(skips), None], strict=True):
            x = block(x, skip, train)
        return x


class UNet(nnx.Module):
    """U-Net with a ResNet34 encoder, 24,444,381 parameters at 5 bands and 13 classes.

    The network of the FLAIR #1 baseline (Garioud et al. 2022), which is
    segmentation-models-pytorch's `Unet("resnet34")`. Parameter names are those of its state
    dict. Parameters and statistics are float32, activations have `dtype`, logits are float32.

    Args:
        in_channels: number of bands, 5 in FLAIR (red, green, blue, near infrared, height).
        num_classes: number of output channels, 13 in the baseline.
        metadata_features: length of the metadata vector (45), or 0 for a model without metadata.
        dtype: of the activations: float32 or bfloat16.
        rngs: source of the initial weights.
    """

    row_fusion_size = 512  # the reference's fusion lays 16 numbers along a bottleneck of 16 rows

    def __init__(
        self,
        in_channels: int = 5,
        num_classes: int = 13,
        *,
        metadata_features: int = 0,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.metadata_features = metadata_features
        self.dtype = dtype
        self.encoder = ResNet34Encoder(in_channels, dtype=dtype, rngs=rngs)
        self.decoder = Decoder(ResNet34Encoder.out_channels, dtype=dtype, rngs=rngs)
        self.segmentation_head = nnx.List(
            [
                conv(
                    DECODER_CHANNELS[-1],
                    num_classes,
                    3,
                    bias=True,
                    kernel_init=xavier_uniform,
                    dtype=dtype,
                    rngs=rngs,
                )
            ]
        )
        if metadata_features:
            self.enc = MetadataMLP(metadata_features, rngs=rngs)

    def __call__(
        self,
        x: jax.Array,
        metadata: jax.Array | None = None,
        *,
        train: bool = False,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Logits of every pixel.

        Args:
            x: (N, H, W, bands) normalised floats; H and W multiples of 32.
            metadata: (N, features) float32 encoded metadata, for a model that takes it.
            train: normalise by the batch's statistics (and record them), and drop out.
            dropout_key: random key for the metadata's dropout, needed when both apply.

        Returns:
            (N, H, W, classes) float32.

        Raises:
            UserError: the size, the number of bands or the metadata do not fit the model.
        """
        self._check(x, metadata)
        features = self.encoder(x.astype(self.dtype), train)
        if metadata is not None:
            code = self.enc(metadata, train, dropout_key)
            # The reference's form: 16 numbers along the 16 rows, alike in all columns and channels.
            features[-1] = features[-1] + code[:, :, None, None].astype(self.dtype)
        logits = self.segmentation_head[0](self.decoder(features, train))
        return logits.astype(jnp.float32)

    def _check(self, x: jax.Array, metadata: jax.Array | None) -> None:
        _, height, width, bands = x.shape
        if bands != self.in_channels:
            raise UserError(f"this model takes {self.in_channels} bands, the image has {bands}")
        if height % STRIDE or width % STRIDE:
            raise UserError(
                f"the U-Net takes heights and widths that are multiples of {STRIDE}, not "
                f"{height} x {width}; set config.crop_size to a multiple of {STRIDE}"
            )
        if (metadata is not None) != bool(self.metadata_features):
            has, given = ("takes", "none was") if metadata is None else ("takes no", "it was")
            raise UserError(f"this model {has} metadata, and {given} given")
        if metadata is not None and {height, width} != {self.row_fusion_size}:
            raise UserError(
                f"the metadata's row fusion is defined for {self.row_fusion_size} x "
                f"{self.row_fusion_size} pixels (16 numbers, 16 rows), not {height} x {width}: "
                "set config.crop_size=0 (whole patches of 512), or train without metadata"
            )
