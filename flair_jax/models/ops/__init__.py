"""The network's operations, in the form that is fastest on a platform: one module per platform.

Every module here is an `Ops`: it has the same functions, computes the same sums and differs in
the order and the memory layout only. To add a form for another platform, add a module with its
name, such as `gpu.py`; what does not differ it imports from `plain`.
"""

import importlib
import importlib.util
from typing import Any, Protocol, cast

import jax
from jax.sharding import Mesh

# A form's own representation of an array (N, H, W, C): a pytree of one array. Functions of single
# numbers may be applied by `jax.tree.map`, all else needs the form's functions.
FeatureMap = Any

_SAME_PLATFORM = {"cuda": "gpu", "rocm": "gpu"}


class Ops(Protocol):
    """What a form provides. Shapes are those of the (N, H, W, C) array that a map represents."""

    def enter(self, image: jax.Array) -> FeatureMap:
        """The map of an image (N, H, W, C); W is a multiple of 32."""

    def leave(self, x: FeatureMap) -> jax.Array:
        """The inverse of `enter`: (N, H, W, C)."""

    def channels(self, x: FeatureMap) -> int:
        """C."""

    def convolution(self, x: FeatureMap, kernel: jax.Array, stride: int = 1) -> FeatureMap:
        """A convolution padded by half the kernel on every side.

        Args:
            x: (N, H, W, in).
            kernel: (k, k, in, out) float32, k odd.
            stride: 1 or 2.

        Returns:
            (N, H / stride, W / stride, out) of x's dtype. Products of float32 are not rounded to
            bfloat16 or TF32.
        """

    def upsampled_convolution(
        self, x: FeatureMap, skip: FeatureMap | None, kernel: jax.Array
    ) -> FeatureMap:
        """A convolution of a map doubled by nearest neighbours and concatenated with another.

        Args:
            x: (N, H, W, a).
            skip: (N, 2 H, 2 W, b), or None: b is 0.
            kernel: (3, 3, a + b, out) float32.

        Returns:
            (N, 2 H, 2 W, out) of x's dtype.
        """

    def max_pool(self, x: FeatureMap) -> FeatureMap:
        """The largest of every 3 x 3 pixels, at every second row and column.

        Args:
            x: (N, H, W, C) without negative values.

        Returns:
            (N, H / 2, W / 2, C), padded by 1 on every side. Where values are equal, the gradient
            is that of the first one, row by row, as it is in PyTorch.
        """

    def moments(self, x: FeatureMap, around: jax.Array) -> tuple[jax.Array, jax.Array, int]:
        """First and second moment of each channel around a given value, in one pass.

        Args:
            x: (groups, N, H, W, C) float32.
            around: (C,) float32.

        Returns:
            The means of x - around and of its square, (groups, C) float32; and the number of
            pixels that they are taken over.
        """

    def scale_and_shift(self, x: FeatureMap, scale: jax.Array, shift: jax.Array) -> FeatureMap:
        """x * scale + shift.

        Args:
            x: (groups, N, H, W, C) float32.
            scale, shift: (groups, C) float32.
        """

    def add_to_rows(self, x: FeatureMap, values: jax.Array) -> FeatureMap:
        """Adds values that are alike for all pixels of a row, such as a bias.

        Args:
            x: (N, H, W, C).
            values: (C,), or (N or 1, H or 1, 1, C or 1).
        """

    def class_layout(
        self, logits: FeatureMap, labels: jax.Array
    ) -> tuple[jax.Array, jax.Array, int]:
        """Logits and labels in the layout in which sums over the classes are fast.

        Args:
            logits: (N, H, W, classes).
            labels: (N, H, W).

        Returns:
            The logits with the samples first and the classes along an axis; the labels with the
            pixels in the same order, and 1 in place of the classes; and this axis.
        """

    def best_class(self, logits: FeatureMap) -> jax.Array:
        """(N, H, W, classes) -> (N, H, W) int32: the first class of each pixel's largest logit."""

    def count_pairs(self, labels: jax.Array, predictions: jax.Array, num_classes: int) -> jax.Array:
        """How often each pair of classes occurs in an image.

        Args:
            labels, predictions: (N, pixels) uint8; pixels of a label outside the classes are not
                counted.
            num_classes: number of classes.

        Returns:
            (N, classes, classes) int32, rows are the labels.
        """


def for_platform(platform: str) -> Ops:
    """The form for a platform as JAX names it ("cpu", "gpu", "tpu"): `plain` if it has none."""
    name = f"{__name__}.{_SAME_PLATFORM.get(platform, platform)}"
    if importlib.util.find_spec(name) is None:
        name = f"{__name__}.plain"
    return cast(Ops, importlib.import_module(name))


def for_mesh(mesh: Mesh) -> Ops:
    """The form for the devices of a mesh, which need not be those of JAX's default backend."""
    return for_platform(mesh.devices.flat[0].platform)
