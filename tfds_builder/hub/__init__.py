"""The FLAIR-HUB data set builder."""
