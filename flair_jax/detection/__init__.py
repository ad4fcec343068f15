"""A raster of any size -> a land-cover raster: the rooms behind `flair_jax.detect`."""
