"""Training: set-up, loop, step, state, checkpoints."""
