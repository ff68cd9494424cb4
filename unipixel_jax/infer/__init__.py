"""Inference: generation, the predictor, and predictions drawn and written for people."""
