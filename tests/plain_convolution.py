"""What the platforms' forms of a convolution are compared with, on whole numbers."""

import jax
import jax.numpy as jnp
import numpy as np


def whole_numbers(seed, *shape):
    """Small whole numbers, whose sums of products float32 holds exactly in any order."""
    return jnp.asarray(np.random.default_rng(seed).integers(-8, 9, shape), jnp.float32)


def plain(x, kernel, stride=1):
    """The convolution as XLA has it, padded by half the kernel."""
    pad = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
