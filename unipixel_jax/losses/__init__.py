"""Training losses: arrays in, scalars out."""
