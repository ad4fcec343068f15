"""Order of the training patches over several epochs, and random squares of them."""

import numpy as np

from flair_jax.data import input_pipeline
from flair_jax.data.dataset import Split


def first_steps(split: Split, batch_size: int, seed: int, steps: int) -> np.ndarray:
    """Indices of the first batches of a training with this seed: (steps, batch_size) int64."""
    epochs = -(-steps // input_pipeline.steps_per_epoch(split, batch_size))
    order = input_pipeline.TrainOrder(len(split), batch_size, seed, epochs)
    return np.stack([order[step] for step in range(steps)])


def random_squares(rng: np.random.Generator, images: np.ndarray, size: int) -> list[tuple]:
    """For each of some images (N, H, W, ...) the index of a random `size` x `size` square."""
    ends = images.shape[1] - size + 1, images.shape[2] - size + 1
    return [
        np.s_[i, top : top + size, left : left + size]
        for i, (top, left) in enumerate(rng.integers((0, 0), ends, (len(images), 2)))
    ]
