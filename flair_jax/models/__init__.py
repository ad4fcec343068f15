"""The U-Net, its loss and preprocessing, and the spec of a model's inputs and outputs."""
