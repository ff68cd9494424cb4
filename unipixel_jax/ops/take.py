"""Rows of a table, taken by index, on one device or from a table that is sharded by rows.

V rows of the table, D its width, R rows of the batch, b conversations of a row, T tokens.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from unipixel_jax.core.mesh import CONTEXT, DATA
from unipixel_jax.core.platform import platform
from unipixel_jax.core.sharding import BATCH
from unipixel_jax.ops.vocabulary import TABLE, Vocabulary


@jax.custom_vjp
def take_rows(table: jax.Array, ids: jax.Array) -> jax.Array:
    """Return ``table[ids]``.

    XLA's CPU backend gathers bfloat16 by converting the whole table to float32 first: 1.2 GB for the 3B model's vocabulary, and a third of the time of a short
    answer. Gathering the same bits as integers converts nothing there. On a TPU it would copy the table, whose rows lie otherwise in memory as integers.

    Args:
        table: [V, D].
        ids: [...] integers in 0..V-1.

    Returns:
        [..., D] in the table's dtype.
    """
    if table.dtype != jnp.bfloat16 or platform() != "cpu":
        return table[ids]
    return jax.lax.bitcast_convert_type(jax.lax.bitcast_convert_type(table, jnp.uint16)[ids], table.dtype)


def _forward(table: jax.Array, ids: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    # The backward pass needs only the shape and dtype of the table; keeping the table costs nothing, since it is a weight that stays alive.
    return take_rows(table, ids), (table, ids)


def _backward(saved: tuple[jax.Array, jax.Array], d_rows: jax.Array) -> tuple[jax.Array, None]:
    table, ids = saved
    return jnp.zeros_like(table).at[ids].add(d_rows), None


take_rows.defvjp(_forward, _backward)

ROWS = PartitionSpec(BATCH, None, CONTEXT)
"""The PartitionSpec of token ids [R, b, T], and of their embeddings."""


def sharded_embedding_lookup(table: jax.Array, ids: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Return ``table[ids]`` for a batch, where the table's rows are sharded over the mesh that is set.

    Each device looks up the tokens of all devices in its own rows, and a reduce-scatter returns the sums to the devices of the tokens (ops/vocabulary.py).
    Without a mesh it is ``take_rows``.

    Args:
        table: [V, D].
        ids: [R, b, T] integers in 0..V-1; R is sharded over the mesh axes of samples, T along ``context``.
        dtype: dtype of the result.

    Returns:
        [R, b, T, D] in ``dtype``, sharded as ``ids`` are.
    """
    vocabulary = Vocabulary.of(table)
    return take_rows(table, ids).astype(dtype) if vocabulary.mesh is None else _sharded_lookup(vocabulary, dtype, vocabulary.pad_to_multiple(table), ids)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sharded_lookup(vocabulary: Vocabulary, dtype: jnp.dtype, table: jax.Array, ids: jax.Array) -> jax.Array:
    def local(table: jax.Array, ids: jax.Array) -> jax.Array:
        here, row = vocabulary.local_rows(vocabulary.all_gather(ids), table.shape[0])
        return vocabulary.reduce_scatter_sum(jnp.where(here[..., None], take_rows(table, row).astype(dtype), jnp.zeros((), dtype)))

    return vocabulary.shard_map(local, (TABLE, ROWS), ROWS)(table, ids)


def _sharded_lookup_forward(vocabulary: Vocabulary, dtype: jnp.dtype, table: jax.Array, ids: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _sharded_lookup(vocabulary, dtype, table, ids), (table, ids)


def _sharded_lookup_backward(vocabulary: Vocabulary, dtype: jnp.dtype, saved: tuple[jax.Array, jax.Array], d_rows: jax.Array) -> tuple[jax.Array, None]:
    def local(table: jax.Array, ids: jax.Array, d_rows: jax.Array) -> jax.Array:
        here, row = vocabulary.local_rows(vocabulary.all_gather(ids), table.shape[0])
        d_rows = jnp.where(here[..., None], vocabulary.all_gather(d_rows), jnp.zeros((), dtype)).astype(table.dtype)
        return vocabulary.sum_over(jnp.zeros_like(table).at[row].add(d_rows), DATA)

    return vocabulary.shard_map(local, (TABLE, ROWS, ROWS), TABLE)(*saved, d_rows), None


_sharded_lookup.defvjp(_sharded_lookup_forward, _sharded_lookup_backward)
