"""A network of two convolutions in place of the U-Net: for tests of what is around it."""

import contextlib

import jax
import jax.numpy as jnp
from flax import nnx

from flair_jax.models import functional
from flair_jax.models.ops import plain
from flair_jax.models.spec import ModelSpec


class TinyModel(nnx.Module):
    """Called as the U-Net is, with a normalisation whose statistics training changes."""

    def __init__(self, bands, classes, rngs):
        self.conv = nnx.Conv(bands, 8, (3, 3), rngs=rngs)
        self.bn = nnx.BatchNorm(8, rngs=rngs)
        self.head = nnx.Conv(8, classes, (1, 1), rngs=rngs)
        self.groups, self.remat, self.ops = 1, False, plain

    def __call__(self, image, metadata=None, *, train=False, dropout_key=None):
        x = self.bn(self.conv(image), use_running_average=not train)
        return self.head(jax.nn.relu(x)).astype(jnp.float32)


def build_model(spec, seed=0):
    return TinyModel(len(spec.bands), len(spec.nomenclature), nnx.Rngs(seed))


def install():
    """Has every spec build it, in this process."""
    ModelSpec.build_model = build_model
    functional.abstract_model.cache_clear()


@contextlib.contextmanager
def installed():
    """Has every spec build it within the context."""
    before = ModelSpec.build_model
    install()
    try:
        yield
    finally:
        ModelSpec.build_model = before
        functional.abstract_model.cache_clear()
