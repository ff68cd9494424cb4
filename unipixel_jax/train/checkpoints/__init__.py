"""Checkpoints of training runs: writing, reading back, and what a run says of itself in its manifest."""
