"""Attention behind one contract; see api.py."""

from unipixel_jax.ops.attention.api import attention
from unipixel_jax.ops.attention.choice import BACKENDS, use_attention
from unipixel_jax.ops.attention.dropout import WeightDropout
from unipixel_jax.ops.attention.mask import AttnMask
from unipixel_jax.ops.attention.sharded import AttentionSharding

__all__ = ["BACKENDS", "AttentionSharding", "AttnMask", "WeightDropout", "attention", "use_attention"]
