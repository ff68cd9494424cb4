"""Attention behind one contract; see api.py."""

from unipixel_jax.ops.attention.api import BACKENDS, attention
from unipixel_jax.ops.attention.mask import AttnMask

__all__ = ["BACKENDS", "AttnMask", "attention"]
