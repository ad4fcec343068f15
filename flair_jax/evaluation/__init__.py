"""Scores and predictions of a split."""
