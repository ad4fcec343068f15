"""The plain form of the network's operations: arrays (N, H, W, C) and XLA's own operations.

For GPUs, whose cuDNN takes narrow maps as they are, and for platforms without another form. The
functions are described in `flair_jax.models.ops.Ops`.
"""

import jax
import jax.numpy as jnp

from flair_jax.models.ops._cells import pool_neighbours


def enter(image: jax.Array) -> jax.Array:
    return image


def leave(x: jax.Array) -> jax.Array:
    return x


def channels(x: jax.Array) -> int:
    return x.shape[-1]


def convolution(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    pad = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        (stride, stride),
        ((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=full_precision(x),
    )


def full_precision(x: jax.Array) -> jax.lax.Precision | None:
    """The precision in which products of float32 are not rounded, on every platform.

    TPUs and newer GPUs would otherwise multiply in bfloat16 or TF32. JAX's own setting
    `jax_default_matmul_precision` comes first where it is set.
    """
    chosen = jax.config.values["jax_default_matmul_precision"]
    if x.dtype != jnp.float32 or chosen is not None:
        return None
    return jax.lax.Precision.HIGHEST


def upsampled_convolution(x: jax.Array, skip: jax.Array | None, kernel: jax.Array) -> jax.Array:
    x = upsample(x)
    return convolution(x if skip is None else jnp.concatenate([x, skip], axis=-1), kernel)


def upsample(x: jax.Array) -> jax.Array:
    """Nearest-neighbour doubling: (N, H, W, C) -> (N, 2 H, 2 W, C)."""
    n, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (n, h, 2, w, 2, c)).reshape(n, 2 * h, 2 * w, c)


def max_pool(x: jax.Array) -> jax.Array:
    # As comparisons: the gradient of XLA's own is a scatter, on GPUs in no fixed order, and slow on
    # CPUs.
    n, h, w, c = x.shape
    even, odd = jnp.moveaxis(x.reshape(n, h, w // 2, 2, c), 3, 0)
    before = jnp.pad(odd[:, :, :-1], ((0, 0), (0, 0), (1, 0), (0, 0)))
    return pool_neighbours(before, even, odd)


def moments(x: jax.Array, around: jax.Array) -> tuple[jax.Array, jax.Array, int]:
    offset = jnp.mean(x - around, (1, 2, 3))
    return offset, jnp.mean(jnp.square(x - around), (1, 2, 3)), x.size // offset.size


def scale_and_shift(x: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
    return x * scale[:, None, None, None] + shift[:, None, None, None]


def add_to_rows(x: jax.Array, values: jax.Array) -> jax.Array:
    # In float32, so that the gradient of the values, a sum over all pixels, is not rounded.
    return (x.astype(jnp.float32) + values).astype(x.dtype)


def class_layout(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array, int]:
    return logits, labels[..., None], -1


def best_class(logits: jax.Array) -> jax.Array:
    return jnp.argmax(logits, -1)


def count_pairs(labels: jax.Array, predictions: jax.Array, num_classes: int) -> jax.Array:
    # A product of two one-hot matrices, image by image: no scatter, and exact in int32.
    classes = jnp.arange(num_classes, dtype=labels.dtype)
    truth = (labels[..., None] == classes).astype(jnp.int8)
    predicted = (predictions[..., None] == classes).astype(jnp.int8)
    return jnp.einsum("npt,npc->ntc", truth, predicted, preferred_element_type=jnp.int32)
