"""Rows of a table by number."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec

from unipixel_jax.core.mesh import CONTEXT, DATA, FSDP, TENSOR
from unipixel_jax.core.sharding import BATCH, for_vocabulary, vocabulary_mesh


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

ROWS, WEIGHTS = PartitionSpec(BATCH, None, CONTEXT), PartitionSpec((FSDP, TENSOR))


def take_divided_rows(table: jax.Array, ids: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """``table[ids]`` for a batch of samples, where the mesh that is set divides the table's rows: each chip gives what it has of all tokens. No chip ever
    holds the table, or its gradient, whole.

    Args:
        table: [V, D].
        ids: [R, b, T] integers in 0..V-1, R divided over the mesh's samples.
        dtype: of the result.

    Returns:
        [R, b, T, D].
    """
    mesh = vocabulary_mesh()
    return take_rows(table, ids).astype(dtype) if mesh is None else _divided(mesh, dtype, for_vocabulary(table, mesh), ids)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _divided(mesh: AbstractMesh, dtype: jnp.dtype, table: jax.Array, ids: jax.Array) -> jax.Array:
    def local(table: jax.Array, ids: jax.Array) -> jax.Array:
        here, row = _own_rows(mesh, table, ids)
        rows = jnp.where(here[..., None], take_rows(table, row).astype(dtype), jnp.zeros((), dtype))
        return jax.lax.psum(jax.lax.psum_scatter(rows, FSDP, tiled=True), TENSOR)

    return jax.shard_map(local, mesh=mesh, in_specs=(WEIGHTS, ROWS), out_specs=ROWS, check_vma=False)(table, ids)


def _divided_forward(mesh: AbstractMesh, dtype: jnp.dtype, table: jax.Array, ids: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _divided(mesh, dtype, table, ids), (table, ids)


def _divided_backward(mesh: AbstractMesh, dtype: jnp.dtype, saved: tuple[jax.Array, jax.Array], d_rows: jax.Array) -> tuple[jax.Array, None]:
    table, ids = saved

    def local(table: jax.Array, ids: jax.Array, d_rows: jax.Array) -> jax.Array:
        here, row = _own_rows(mesh, table, ids)
        d_rows = jnp.where(here[..., None], jax.lax.all_gather(d_rows, FSDP, tiled=True), jnp.zeros((), dtype)).astype(table.dtype)
        return jax.lax.psum(jnp.zeros_like(table).at[row].add(d_rows), (DATA, CONTEXT))

    return jax.shard_map(local, mesh=mesh, in_specs=(WEIGHTS, ROWS, ROWS), out_specs=WEIGHTS, check_vma=False)(table, ids, d_rows), None


_divided.defvjp(_divided_forward, _divided_backward)


def _own_rows(mesh: AbstractMesh, table: jax.Array, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """For the tokens of all chips along ``fsdp``: whether this chip has the row, and which of its rows it is."""
    part = jax.lax.axis_index(FSDP) * mesh.shape[TENSOR] + jax.lax.axis_index(TENSOR)
    row = jax.lax.all_gather(ids, FSDP, tiled=True) - part * table.shape[0]
    return (row >= 0) & (row < table.shape[0]), jnp.clip(row, 0, table.shape[0] - 1)
