"""Benchmarks of the model on this machine, at real sizes and with random weights."""
