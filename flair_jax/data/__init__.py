"""The data set: classes, metadata, the input pipeline, what IGN published of it."""
