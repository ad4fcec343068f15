"""The FLAIR #1 data set builder."""
