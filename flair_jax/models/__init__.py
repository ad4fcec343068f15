"""The network, its loss, and what a model takes and gives."""
