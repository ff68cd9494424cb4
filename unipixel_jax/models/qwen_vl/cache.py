"""Keys and values of earlier tokens, in one fixed-size buffer for all layers.

L layers, B batch, S slots, K key heads, H head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from unipixel_jax.config import TextConfig


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """Attributes:
    k: [L, B, S, K, H], after rope.
    v: [L, B, S, K, H].
    segments: [B, S] int32, 1 where a slot holds a token, 0 where it is padding or still empty.
    """

    k: jax.Array
    v: jax.Array
    segments: jax.Array

    @classmethod
    def empty(cls, config: TextConfig, batch: int, slots: int, dtype: jnp.dtype) -> KVCache:
        """A cache with no token in it."""
        shape = (config.num_hidden_layers, batch, slots, config.num_key_value_heads, config.head_dim)
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros((batch, slots), jnp.int32))

    def mark(self, segments: jax.Array, at: jax.Array | int) -> KVCache:
        """Record which of the slots from ``at`` on hold a token; ``segments`` is [B, T]."""
        return KVCache(self.k, self.v, jax.lax.dynamic_update_slice_in_dim(self.segments, segments, at, 1))
