"""A fuzz of the commands of unipixel-jax: they run on thousands of mutated files and odd arguments, and are killed at file events (docs/testing.md)."""
