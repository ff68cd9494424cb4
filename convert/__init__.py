"""The weight converter: torch checkpoints of UniPixel to JAX and back, bit for bit, and a report of what a file holds."""
