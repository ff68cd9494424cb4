"""Who may see whom, kept structured until a backend needs it written out.

B batch, T query length, S key length.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AttnMask:
    """A query sees a key if every given rule allows it.

    Attributes:
        causal: query i sees keys 0..i.
        q_segments: [B, T] int32, with kv_segments: a query sees keys of its own segment; segment 0 is padding, which sees and is seen by none.
        kv_segments: [B, S] int32.
        kv_lengths: [B] int32: the keys from there on are padding. ``attention`` writes them into the segments, so no backend sees them.
        run: where not 0, a promise that keys come in aligned runs of so many, each of which all queries see or none does. Blocks that divide a run then need
            no mask.
    """

    causal: bool = field(default=False, metadata={"static": True})
    q_segments: jax.Array | None = None
    kv_segments: jax.Array | None = None
    kv_lengths: jax.Array | None = None
    run: int = field(default=0, metadata={"static": True})

    @property
    def segments(self) -> tuple[jax.Array, jax.Array] | None:
        """The segment ids of the queries [B, T] and of the keys [B, S], or None where the mask has none."""
        return None if self.q_segments is None or self.kv_segments is None else (self.q_segments, self.kv_segments)

    def with_segments(self, segments: tuple[jax.Array, jax.Array] | None) -> AttnMask:
        """The same rules with the segments of other queries and keys."""
        q, kv = segments or (None, None)
        return replace(self, q_segments=q, kv_segments=kv)

    def without_lengths(self, queries: int, keys: int) -> AttnMask:
        """The same rules, with the lengths written into the segments."""
        if self.kv_lengths is None:
            return self
        batch = self.kv_lengths.shape[0]
        q, kv = self.segments or (jnp.ones((batch, queries), jnp.int32), jnp.ones((batch, keys), jnp.int32))
        return AttnMask(self.causal, q, jnp.where(jnp.arange(keys)[None] < self.kv_lengths[:, None], kv, 0))

    def padded(self, batch: int, queries: int, keys: int, pad_queries: int, pad_keys: int) -> AttnMask:
        """The mask of longer arrays, in which the keys that were added are hidden."""
        if self.segments is None and not pad_keys:
            return self
        q, kv = self.segments or (jnp.ones((batch, queries), jnp.int32), jnp.ones((batch, keys), jnp.int32))
        return self.with_segments((jnp.pad(q, ((0, 0), (0, pad_queries))), jnp.pad(kv, ((0, 0), (0, pad_keys)))))

    def visible(self, q_index: jax.Array, kv_index: jax.Array) -> jax.Array | None:
        """The mask written out for some queries and keys: [B or 1, 1, 1, t, s] booleans, or None where all see all."""
        rules = []
        if self.causal:
            rules.append((q_index[:, None] >= kv_index[None])[None, None, None])
        if self.segments is not None:
            q, kv = self.segments[0][:, q_index], self.segments[1][:, kv_index]
            rules.append(((q[:, :, None] == kv[:, None, :]) & (kv != 0)[:, None, :])[:, None, None])
        if not rules:
            return None
        return rules[0] if len(rules) == 1 else jnp.logical_and(*jnp.broadcast_arrays(*rules))

    def live_blocks(self, q_block: int, kv_block: int, queries: int, keys: int) -> jax.Array | None:
        """Which pairs of a block of queries and a block of keys may hold a visible pair: [B or 1, queries / q_block, keys / kv_block] booleans, or None
        where all do. Segments are compared by their smallest and largest number in a block, so a block may be kept in vain but never lost.
        """
        rules = []
        if self.causal:
            last_query = (jnp.arange(queries // q_block) + 1) * q_block - 1
            rules.append((last_query[:, None] >= (jnp.arange(keys // kv_block) * kv_block)[None])[None])
        if self.segments is not None:
            (q_low, q_high), (kv_low, kv_high) = (_range(a, block) for a, block in zip(self.segments, (q_block, kv_block), strict=True))
            rules.append((q_low[:, :, None] <= kv_high[:, None]) & (kv_low[:, None] <= q_high[:, :, None]))
        if not rules:
            return None
        return rules[0] if len(rules) == 1 else jnp.logical_and(*jnp.broadcast_arrays(*rules))


def _range(segments: jax.Array, block: int) -> tuple[jax.Array, jax.Array]:
    """Smallest and largest number of each block of [B, L], padding aside; a block of padding has an empty range."""
    blocks = segments.reshape(segments.shape[0], -1, block)
    largest = jnp.iinfo(jnp.int32).max
    return jnp.min(jnp.where(blocks == 0, largest, blocks), axis=-1), jnp.max(jnp.where(blocks == 0, -largest, blocks), axis=-1)
