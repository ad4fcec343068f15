"""FLAIR #1 land cover in JAX: the published U-Net baseline, trained, scored and applied."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["load_model"]


def __getattr__(name: str) -> Any:
    """Imports `load_model` when it is asked for: it brings JAX with it."""
    if name == "load_model":
        from flair_jax.inference import load_model

        return load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
