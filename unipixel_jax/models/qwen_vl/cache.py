"""The cache of keys and values of earlier tokens, in one buffer of fixed size for all layers.

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
    """The keys and values of all layers.

    Attributes:
        k: [L, B, S, K, H] keys after rope, in the compute dtype.
        v: [L, B, S, K, H] values, in the compute dtype.
        segments: [B, S] int32, 1 where a slot holds a token, 0 where it is padding or still empty.
    """

    k: jax.Array
    v: jax.Array
    segments: jax.Array

    @classmethod
    def empty(cls, config: TextConfig, batch: int, slots: int, dtype: jnp.dtype) -> KVCache:
        """Return a cache without tokens."""
        shape = (config.num_hidden_layers, batch, slots, config.num_key_value_heads, config.head_dim)
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros((batch, slots), jnp.int32))

    def mark(self, segments: jax.Array, at: jax.Array | int) -> KVCache:
        """Return the cache with ``segments`` [B, T] int32 of new tokens written to the slots from ``at`` on."""
        return KVCache(self.k, self.v, jax.lax.dynamic_update_slice_in_dim(self.segments, segments, at, 1))

    def padded(self, slots: int) -> KVCache:
        """Return the cache with empty slots behind its own, ``slots`` in all."""
        more = slots - self.segments.shape[1]
        k, v = (jnp.pad(buffer, ((0, 0), (0, 0), (0, more), (0, 0), (0, 0))) for buffer in (self.k, self.v))
        return KVCache(k, v, jnp.pad(self.segments, ((0, 0), (0, more))))

    def rolled(self, shift: jax.Array | int) -> KVCache:
        """Return the cache with every slot's content ``shift`` slots later, and that of the last slots in the first. Slots have no order for attention: a
        token's place in the conversation is in its key, by rope.
        """
        return KVCache(jnp.roll(self.k, shift, 2), jnp.roll(self.v, shift, 2), jnp.roll(self.segments, shift, 1))


@dataclass(frozen=True)
class LayerCache:
    """The view that one layer has of a cache. It holds the buffers of all layers and reads and writes the layer's part of them in place: separate buffers
    would be copied out of the stack and back for every token.

    Attributes:
        cache: the keys and values of all layers.
        layer: int32 scalar, the number of this layer.
        at: int32 scalar, the first slot to write.
        continues: whether new tokens attend to the tokens before them in the cache; a single token always does.
    """

    cache: KVCache
    layer: jax.Array | int
    at: jax.Array | int
    continues: bool = False

    def write(self, k: jax.Array, v: jax.Array) -> LayerCache:
        """Return the view with the keys and values [B, T, K, H] of new tokens written to the slots from ``at`` on."""
        start = (self.layer, 0, self.at, 0, 0)
        k = jax.lax.dynamic_update_slice(self.cache.k, k[None], start)
        v = jax.lax.dynamic_update_slice(self.cache.v, v[None], start)
        return replace(self, cache=KVCache(k, v, self.cache.segments))

    def read(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return the layer's keys and values, each [B, S, K, H], and the segments [B, S] of their slots."""
        k, v = (jax.lax.dynamic_index_in_dim(buffer, self.layer, keepdims=False) for buffer in (self.cache.k, self.cache.v))
        return k, v, self.cache.segments
