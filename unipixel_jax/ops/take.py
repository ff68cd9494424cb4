"""Rows of a table by number."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from unipixel_jax.core.mesh import CONTEXT, DATA
from unipixel_jax.core.sharding import BATCH
from unipixel_jax.ops.vocabulary import TABLE, Vocabulary


@jax.custom_vjp
def take_rows(table: jax.Array, ids: jax.Array) -> jax.Array:
    """``table[ids]``.

    XLA's CPU backend gathers bfloat16 by converting the whole table to float32 first: 1.2 GB for the 3B model's vocabulary, and a third of the time of a short
    answer. Gathering the same bits as integers converts nothing.

    Args:
        table: [V, D].
        ids: [...] integers in 0..V-1.

    Returns:
        [..., D] in the table's dtype.
    """
    if table.dtype != jnp.bfloat16:
        return table[ids]
    return jax.lax.bitcast_convert_type(jax.lax.bitcast_convert_type(table, jnp.uint16)[ids], table.dtype)


def _forward(table: jax.Array, ids: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    # of the table only shape and dtype are needed, and it is alive anyway
    return take_rows(table, ids), (table, ids)


def _backward(saved: tuple[jax.Array, jax.Array], d_rows: jax.Array) -> tuple[jax.Array, None]:
    table, ids = saved
    return jnp.zeros_like(table).at[ids].add(d_rows), None


take_rows.defvjp(_forward, _backward)

ROWS = PartitionSpec(BATCH, None, CONTEXT)


def sharded_embedding_lookup(table: jax.Array, ids: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """``table[ids]`` for a batch of samples, where the mesh that is set divides the table's rows: each device gives what it has of all tokens (vocabulary.py).

    Args:
        table: [V, D].
        ids: [R, b, T] integers in 0..V-1, R divided over the mesh's samples.
        dtype: of the result.

    Returns:
        [R, b, T, D].
    """
    vocabulary = Vocabulary.of(table)
    return take_rows(table, ids).astype(dtype) if vocabulary.mesh is None else _divided(vocabulary, dtype, vocabulary.pad_to_multiple(table), ids)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _divided(vocabulary: Vocabulary, dtype: jnp.dtype, table: jax.Array, ids: jax.Array) -> jax.Array:
    def local(table: jax.Array, ids: jax.Array) -> jax.Array:
        here, row = vocabulary.place(vocabulary.all_gathered(ids), table.shape[0])
        return vocabulary.summed(jnp.where(here[..., None], take_rows(table, row).astype(dtype), jnp.zeros((), dtype)))

    return vocabulary.run(local, (TABLE, ROWS), ROWS)(table, ids)


def _divided_forward(vocabulary: Vocabulary, dtype: jnp.dtype, table: jax.Array, ids: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _divided(vocabulary, dtype, table, ids), (table, ids)


def _divided_backward(vocabulary: Vocabulary, dtype: jnp.dtype, saved: tuple[jax.Array, jax.Array], d_rows: jax.Array) -> tuple[jax.Array, None]:
    def local(table: jax.Array, ids: jax.Array, d_rows: jax.Array) -> jax.Array:
        here, row = vocabulary.place(vocabulary.all_gathered(ids), table.shape[0])
        d_rows = jnp.where(here[..., None], vocabulary.all_gathered(d_rows), jnp.zeros((), dtype)).astype(table.dtype)
        return vocabulary.sum(jnp.zeros_like(table).at[row].add(d_rows), DATA)

    return vocabulary.run(local, (TABLE, ROWS, ROWS), TABLE)(*saved, d_rows), None


_divided.defvjp(_divided_forward, _divided_backward)
