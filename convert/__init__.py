"""The weight converter: it converts torch checkpoints of UniPixel to JAX and back, bit for bit, and reports what a file holds."""
