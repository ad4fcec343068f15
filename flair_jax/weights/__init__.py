"""Weights that are published: PyTorch's files, names and architectures, the Hugging Face hub."""
