"""Images and figures: class maps, overlays, plots."""
