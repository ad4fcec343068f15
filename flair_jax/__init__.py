"""FLAIR #1 land cover in JAX: the published U-Net baseline, its training, scoring and prediction."""

__version__ = "0.1.0"
