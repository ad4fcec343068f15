"""FLAIR #1 land cover in JAX: the published U-Net baseline, trained, scored and applied."""

__version__ = "0.1.0"
