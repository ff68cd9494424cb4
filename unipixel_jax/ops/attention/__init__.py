"""Attention behind one contract, see api.py; within the windows of maps, see maps.py."""

from unipixel_jax.ops.attention.api import Keys, attention, joint_attention
from unipixel_jax.ops.attention.choice import BACKENDS, use_attention
from unipixel_jax.ops.attention.dropout import WeightDropout
from unipixel_jax.ops.attention.maps import attention_in_windows
from unipixel_jax.ops.attention.mask import AttnMask
from unipixel_jax.ops.attention.sharded import AttentionSharding

__all__ = [
    "BACKENDS",
    "AttentionSharding",
    "AttnMask",
    "Keys",
    "WeightDropout",
    "attention",
    "attention_in_windows",
    "joint_attention",
    "use_attention",
]
