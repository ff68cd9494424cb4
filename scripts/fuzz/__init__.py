"""Commands of unipixel-jax on thousands of mutated files and odd arguments, and killed at events of their files (docs/testing.md)."""
