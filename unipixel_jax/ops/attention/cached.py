"""Attention from new tokens to a cache of keys and values, of which only the blocks of slots that hold something are read.

A cache has slots for the longest answer, and a step of generation is bound by the bytes that it reads. The loop over blocks has a bound that the data give,
so one compiled program reads as much of the cache as is filled. Blocks are joined by a running softmax (Milakov & Gimelshein, 2018), as in xla_chunked.py.

L layers, B batch, T new tokens, S slots, N query heads, K key heads, G = N / K queries per key head, H head size, s slots of a block, J blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from unipixel_jax.core.axes import HEADS
from unipixel_jax.core.platform import platform
from unipixel_jax.core.sharding import current_mesh, mesh_axes
from unipixel_jax.ops.attention.cached_gpu import SPLIT, attend_to_seen
from unipixel_jax.ops.attention.xla import FLOOR, HIDDEN, scores, weighted

BLOCK = 256
"""Slots of a block: few enough that a short conversation reads little of what it does not have, and many enough that the steps of the loop cost little beside
the bytes that they read."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LiveBlocks:
    """The blocks of a cache's slots that hold a token of a row that goes on.

    Attributes:
        order: [J] int32, the numbers of all blocks, the live ones first.
        count: int32 scalar, how many are live.
    """

    order: jax.Array
    count: jax.Array

    @classmethod
    def of(cls, held: jax.Array, running: jax.Array) -> LiveBlocks:
        """Return the live blocks.

        Args:
            held: [B, S], not 0 where a slot holds a token.
            running: [B] bool, the rows that have new tokens.
        """
        block = block_slots(held.shape[1])
        any_row = jnp.any((held != 0) & running[:, None], axis=0)
        live = jnp.any(jnp.pad(any_row, (0, -held.shape[1] % block)).reshape(-1, block), axis=1)
        return cls(jnp.argsort(~live, stable=True).astype(jnp.int32), jnp.sum(live, dtype=jnp.int32))


def block_slots(slots: int) -> int:
    """Return the length of a block of a cache with so many slots: all of them on a GPU, where a loop would wait for the host (cached_gpu.py)."""
    return slots if platform() == "gpu" else min(BLOCK, slots)


def slots_read_as_one(slots: int) -> int:
    """Return how many slots of a cache are read if one of them holds something: a block, or the split of a program on a GPU."""
    return min(SPLIT, slots) if platform() == "gpu" else block_slots(slots)


def attend_to_cache(
    q: jax.Array, k: jax.Array, v: jax.Array, layer: jax.Array | int, segments: jax.Array, held: jax.Array, own: jax.Array, live: LiveBlocks
) -> jax.Array:
    """Attend from new tokens to the tokens in a layer's slots, a single one to all of its row, several to those in slots up to their own.

    Args:
        q: [B, T, N, H].
        k: [L, B, K, S, H], q's dtype.
        v: [L, B, K, S, H], q's dtype.
        layer: int32 scalar, which layer's slots are read.
        segments: [B, T] int32, 0 for new tokens that are padding, which see nothing and get zeros.
        held: [B, S] int32, the segments of the tokens in the slots, 0 where there is none. A token sees those of its own segment.
        own: [T] int32, the slots of the new tokens.
        live: the blocks of slots that are read.

    Returns:
        [B, T, N, H] in q's dtype.
    """
    (b, t, n, h), (kh, slots) = q.shape, k.shape[2:4]
    if t == 1 and platform() == "gpu":
        return _on_every_device(attend_to_seen, q.reshape(b, kh, n // kh, h), k, v, layer, segments[:, 0], held).reshape(q.shape)
    block = block_slots(slots)
    grouped = q.reshape(b, t, kh, n // kh, h).transpose(0, 2, 3, 1, 4)

    def visit(i: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        best, total, out = state
        nominal = live.order[i] * block
        start = jnp.minimum(nominal, slots - block)
        # The last block ends with the cache, and so begins within the one before it, whose slots it leaves out.
        place = start + jnp.arange(block)
        keys, values = (_block(a, layer, start, block) for a in (k, v))
        there = jnp.where((place >= nominal)[None], jax.lax.dynamic_slice_in_dim(held, start, block, 1), 0)
        visible = (there[:, None] == segments[:, :, None]) & (there != 0)[:, None]
        if t > 1:
            visible &= (place[None] <= own[:, None])[None]
        logits = jnp.where(visible[:, None, None], scores(grouped, keys, h**-0.5), HIDDEN)
        new_best = jnp.maximum(best, jnp.max(logits, axis=-1, keepdims=True))
        p = jnp.exp(logits - new_best)
        keep = jnp.exp(best - new_best)
        return new_best, total * keep + jnp.sum(p, axis=-1, keepdims=True), out * keep + weighted(p, values)

    shape = grouped.shape[:-1]
    start = jnp.full((*shape, 1), FLOOR, jnp.float32), jnp.zeros((*shape, 1), jnp.float32), jnp.zeros((*shape, h), jnp.float32)
    whole = block == slots
    _, total, out = visit(jnp.int32(0), start) if whole else jax.lax.fori_loop(0, live.count, visit, start)
    out = (out / jnp.where(total == 0, 1.0, total)).astype(q.dtype)
    return out.transpose(0, 3, 1, 2, 4).reshape(b, t, n, h)


def _block(buffer: jax.Array, layer: jax.Array | int, start: jax.Array, block: int) -> jax.Array:
    """Return the slots [B, K, s, H] of a layer from ``start`` on.

    XLA's CPU backend slices bfloat16 by converting the whole buffer to float32 first. Slicing the same bits as integers converts nothing there, and the
    barrier keeps XLA from making all bits integers before the loop.
    """
    shape = (1, *buffer.shape[1:3], block, buffer.shape[4])
    if buffer.dtype != jnp.bfloat16 or platform() != "cpu":
        return jax.lax.dynamic_slice(buffer, (layer, 0, 0, start, 0), shape)[0]
    buffer, start = jax.lax.optimization_barrier((buffer, start))
    bits = jax.lax.dynamic_slice(jax.lax.bitcast_convert_type(buffer, jnp.uint16), (layer, 0, 0, start, 0), shape)[0]
    return jax.lax.bitcast_convert_type(bits, buffer.dtype)


def _on_every_device(
    attend: Callable[..., jax.Array], q: jax.Array, k: jax.Array, v: jax.Array, layer: jax.Array | int, segments: jax.Array, held: jax.Array
) -> jax.Array:
    """Run a kernel, which XLA cannot divide, on each device of the mesh that is set with its own heads; arguments as of ``attend_to_seen``."""
    mesh, layer = current_mesh(), jnp.asarray(layer, jnp.int32)
    if mesh is None:
        return attend(q, k, v, layer, segments, held)
    heads = mesh_axes(HEADS, q.shape[1])
    own, cache, all_of_it = PartitionSpec(None, heads), PartitionSpec(None, None, heads), PartitionSpec()
    in_specs = (own, cache, cache, all_of_it, all_of_it, all_of_it)
    return jax.shard_map(attend, mesh=mesh, in_specs=in_specs, out_specs=own, check_vma=False)(q, k, v, layer, segments, held)
