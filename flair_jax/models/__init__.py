"""The networks: modules and nothing else. They know neither data nor training."""

from flair_jax.models.metadata_mlp import MetadataMLP
from flair_jax.models.resnet import ResNet34Encoder
from flair_jax.models.unet import UNet

__all__ = ["MetadataMLP", "ResNet34Encoder", "UNet"]
