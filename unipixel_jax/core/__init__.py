"""Plumbing that knows no model: weight declarations, stacking, trees, static sizes, checkpoints."""
