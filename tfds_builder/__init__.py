"""Builds FLAIR #1 as a TensorFlow Datasets data set in ArrayRecord files, without TensorFlow."""
