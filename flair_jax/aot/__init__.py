"""Programs compiled ahead of time for hardware that need not be there."""
