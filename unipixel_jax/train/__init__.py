"""Training: the objective, the optimizer, the step, the loop, and the checkpoints of runs."""
