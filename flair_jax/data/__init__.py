"""The data set: classes, metadata, the input pipeline, and published reference figures."""
