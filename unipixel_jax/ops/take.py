"""Rows of a table by number."""

from __future__ import annotations

import jax
import jax.numpy as jnp


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


@jax.custom_vjp
def gather_groups(x: jax.Array, table: jax.Array, inverse: jax.Array) -> jax.Array:
    """Rows of ``x`` in groups, zeros where a group has no member: ``x[table]``.

    Every row is a member of one group at most, so the gradient is a gather as well. XLA derives a scatter, which its CPU backend runs row by row: the
    gradient of the vision tower took three times as long.

    Args:
        x: [P, ...].
        table: [G, C] int32, the members of each group, filled up with P.
        inverse: [P] int32, each row's place in the flattened table; anything for a row that is in no group.

    Returns:
        [G, C, ...].
    """
    return x.at[table].get(mode="fill", fill_value=0)


def _gather_forward(x: jax.Array, table: jax.Array, inverse: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return gather_groups(x, table, inverse), (table, inverse)


def _gather_backward(saved: tuple[jax.Array, jax.Array], d: jax.Array) -> tuple[jax.Array, None, None]:
    return scatter_groups(d, *saved), None, None


gather_groups.defvjp(_gather_forward, _gather_backward)


@jax.custom_vjp
def scatter_groups(grouped: jax.Array, table: jax.Array, inverse: jax.Array) -> jax.Array:
    """The way back of ``gather_groups``: grouped [G, C, ...] to [P, ...], zeros for rows that are in no group."""
    member = table.reshape(-1)[inverse] == jnp.arange(inverse.shape[0], dtype=table.dtype)
    rows = grouped.reshape(-1, *grouped.shape[2:])[inverse]
    return jnp.where(member.reshape(-1, *(1,) * (rows.ndim - 1)), rows, jnp.zeros((), rows.dtype))


def _scatter_forward(grouped: jax.Array, table: jax.Array, inverse: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return scatter_groups(grouped, table, inverse), (table, inverse)


def _scatter_backward(saved: tuple[jax.Array, jax.Array], d: jax.Array) -> tuple[jax.Array, None, None]:
    return gather_groups(d, *saved), None, None


scatter_groups.defvjp(_scatter_forward, _scatter_backward)
