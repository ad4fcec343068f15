"""The examination of a download or a built data set."""
