"""FLAIR #1 land cover in JAX: the published U-Net baseline, trained, scored and applied."""

from typing import Any

__version__ = "0.2.0"
__all__ = ["detect_raster", "detect_rasters", "load_model", "predict_windows"]


def __getattr__(name: str) -> Any:
    """Imports what is asked for only then: it brings JAX with it."""
    if name == "load_model":
        from flair_jax.inference.predictor import load_model

        return load_model
    if name == "detect_raster":
        from flair_jax.inference.detection import detect_raster

        return detect_raster
    if name == "detect_rasters":
        from flair_jax.inference.many_rasters import detect_rasters

        return detect_rasters
    if name == "predict_windows":
        from flair_jax.inference.windows import predict_windows

        return predict_windows
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
