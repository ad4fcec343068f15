"""Checkpoints for inference, and land-cover maps of rasters of any size."""
