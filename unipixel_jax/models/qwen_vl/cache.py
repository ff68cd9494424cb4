"""Keys and values of earlier tokens, in one fixed-size buffer for all layers.

L layers, B batch, S slots, K key heads, H head size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

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


@dataclass(frozen=True)
class LayerCache:
    """What one layer sees of a cache. It holds the buffers of all layers, of which it reads and writes its own part in place: a buffer for each layer would be
    copied out of the stack and back for every token.

    Attributes:
        cache: the keys and values of all layers.
        layer: int32 scalar, the number of this one.
        at: int32 scalar, the first slot to write.
    """

    cache: KVCache
    layer: jax.Array | int
    at: jax.Array | int

    def write(self, k: jax.Array, v: jax.Array) -> LayerCache:
        """With the keys and values [B, T, K, H] of new tokens in the slots from ``at`` on."""
        start = (self.layer, 0, self.at, 0, 0)
        k = jax.lax.dynamic_update_slice(self.cache.k, k[None], start)
        v = jax.lax.dynamic_update_slice(self.cache.v, v[None], start)
        return replace(self, cache=KVCache(k, v, self.cache.segments))

    def read(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The layer's keys and values, each [B, S, K, H], and the segments of their slots [B, S]."""
        k, v = (jax.lax.dynamic_index_in_dim(buffer, self.layer, keepdims=False) for buffer in (self.cache.k, self.cache.v))
        return k, v, self.cache.segments
