"""Inference: generation, the predictor, and what a person sees of a prediction."""
