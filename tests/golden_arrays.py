"""The arrays that the golden numbers were made from: each is a function of its name."""

import zlib
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

from flair_jax.models.functional import split_model
from flair_jax.models.unet import UNet
from flair_jax.weights.torch_weights import load_state_dict, torch_name

GOLDEN = Path(__file__).parent / "golden"


def golden(name):
    return np.load(GOLDEN / f"{name}.npz")


def words(name, count):
    return np.random.PCG64(zlib.crc32(f"shared/{name}".encode())).random_raw(count)


def uniform(name, shape, low=0.0, high=1.0):
    share = (words(name, int(np.prod(shape))) >> np.uint64(11)) * 2.0**-53
    return (low + (high - low) * share).astype(np.float32).reshape(shape)


def integers(name, shape, below):
    drawn = (words(name, int(np.prod(shape))) >> np.uint64(32)) % np.uint64(below)
    return drawn.astype(np.uint8).reshape(shape)


def images(name, shape):
    """(N, C, H, W) as drawn -> (N, H, W, C)."""
    return jnp.asarray(uniform(name, shape).transpose(0, 2, 3, 1))


def channels_first(x):
    return np.asarray(x).transpose(0, 3, 1, 2)


def state_dict(model):
    """The weights of the reference model, by their PyTorch names and in PyTorch's layout."""
    _, params, batch_stats = split_model(model)
    weights = {}
    for name, array in {**params, **batch_stats}.items():
        key = torch_name(name)
        if model.metadata_features and not key.startswith("enc."):
            key = f"seg_model.{key}"
        shape = array.shape
        if name.endswith("kernel"):
            shape = (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]
            bound = np.sqrt(6 / np.prod(shape[1:]))
            low, high = -bound, bound
        elif name.endswith((".mean", ".bias")):
            low, high = -0.1, 0.1
        else:
            low, high = 0.8, 1.2
        weights[key] = uniform(key, shape, low, high)
    return weights


def golden_model(in_channels=5, num_classes=13, **options):
    model = UNet(in_channels, num_classes, rngs=nnx.Rngs(0), **options)
    load_state_dict(model, state_dict(model))
    return model
