"""The cache of keys and values of earlier tokens, in one buffer of fixed size for all layers.

Slots follow each other in memory, head by head, as the products of attention read them.

L layers, B batch, S slots, K key heads, C heads of the cache (``cache_heads``), H head size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from unipixel_jax.config import TextConfig
from unipixel_jax.core.axes import HEADS
from unipixel_jax.core.sharding import constrain, devices_of
from unipixel_jax.ops.attention.cached import LiveBlocks, attend_to_cache


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """The keys and values of all layers.

    Attributes:
        k: [L, B, C, S, H] keys after rope, in the compute dtype.
        v: [L, B, C, S, H] values, in the compute dtype.
        segments: [B, S] int32, 1 where a slot holds a token, 0 where it is padding or still empty.
    """

    k: jax.Array
    v: jax.Array
    segments: jax.Array

    @classmethod
    def empty(cls, config: TextConfig, batch: int, slots: int, dtype: jnp.dtype) -> KVCache:
        """Return a cache without tokens, whose heads are sharded over the mesh that is set."""
        shape = (config.num_hidden_layers, batch, cache_heads(config), slots, config.head_dim)
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros((batch, slots), jnp.int32)).sharded()

    def sharded(self) -> KVCache:
        """Return the cache with its heads sharded over the mesh that is set."""
        k, v = (constrain(buffer, None, None, HEADS) for buffer in (self.k, self.v))
        return KVCache(k, v, self.segments)

    def mark(self, segments: jax.Array, at: jax.Array | int) -> KVCache:
        """Return the cache with ``segments`` [B, T] int32 of new tokens written to the slots from ``at`` on."""
        return KVCache(self.k, self.v, jax.lax.dynamic_update_slice_in_dim(self.segments, segments, at, 1))

    def padded(self, slots: int) -> KVCache:
        """Return the cache with empty slots behind its own, ``slots`` in all."""
        more = slots - self.segments.shape[1]
        k, v = (jnp.pad(buffer, ((0, 0), (0, 0), (0, 0), (0, more), (0, 0))) for buffer in (self.k, self.v))
        return KVCache(k, v, jnp.pad(self.segments, ((0, 0), (0, more))))

    def rolled(self, shift: jax.Array | int) -> KVCache:
        """Return the cache with every slot's content ``shift`` slots later, and that of the last slots in the first. Slots have no order for attention: a
        token's place in the conversation is in its key, by rope.
        """
        return KVCache(jnp.roll(self.k, shift, 3), jnp.roll(self.v, shift, 3), jnp.roll(self.segments, shift, 1))


def cache_heads(config: TextConfig) -> int:
    """Return the number of heads of a cache: that of the key heads or, where more devices of the mesh that is set share the query heads, that of these
    devices. Each key head is then held as often as devices need it, and each device holds the one that it needs.
    """
    keys, devices = config.num_key_value_heads, devices_of(HEADS)
    return devices if devices > keys and devices % keys == 0 else keys


@dataclass(frozen=True)
class LayerCache:
    """The view that one layer has of a cache. It holds the buffers of all layers and reads and writes the layer's part of them in place: separate buffers
    would be copied out of the stack and back for every token.

    Attributes:
        cache: the keys and values of all layers.
        layer: int32 scalar, the number of this layer.
        at: int32 scalar, the first slot to write.
        live: the blocks of slots that new tokens attend to; None where they attend to each other only.
    """

    cache: KVCache
    layer: jax.Array | int
    at: jax.Array | int
    live: LiveBlocks | None = None

    def write(self, k: jax.Array, v: jax.Array) -> LayerCache:
        """Return the view with the keys and values [B, T, K, H] of new tokens written to the slots from ``at`` on."""
        repeats = self.cache.k.shape[2] // k.shape[2]

        def written(buffer: jax.Array, new: jax.Array) -> jax.Array:
            new = constrain(jnp.repeat(new, repeats, axis=2).swapaxes(1, 2), None, HEADS)
            return jax.lax.dynamic_update_slice(buffer, new[None], (self.layer, 0, 0, self.at, 0))

        return replace(self, cache=KVCache(written(self.cache.k, k), written(self.cache.v, v), self.cache.segments))

    @property
    def is_read(self) -> bool:
        """Whether new tokens attend to the cache, or to each other only."""
        return self.live is not None

    def attend(self, q: jax.Array, segments: jax.Array) -> jax.Array:
        """Attend from new tokens to the cache that holds them: a single one to all its tokens, several to those in slots up to their own.

        Args:
            q: [B, T, N, H] queries of the tokens in the slots from ``at`` on.
            segments: [B, T] int32, 0 at padding.

        Returns:
            [B, T, N, H] in q's dtype.
        """
        held, live = self.cache, self.live
        assert live is not None, "the cache is read"
        return attend_to_cache(q, held.k, held.v, self.layer, segments, held.segments, self.at + jnp.arange(q.shape[1]), live)
