"""Segmenting and tracking with an export, without JAX: numpy, Pillow, PyAV, tokenizers and a backend that runs the programs."""
