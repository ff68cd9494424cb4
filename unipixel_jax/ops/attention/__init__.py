"""Attention behind one contract; see api.py."""

from unipixel_jax.ops.attention.api import BACKENDS, attention, use_attention
from unipixel_jax.ops.attention.mask import AttnMask
from unipixel_jax.ops.attention.sharded import AttentionSharding, sharded_attention

__all__ = ["BACKENDS", "AttentionSharding", "AttnMask", "attention", "sharded_attention", "use_attention"]
