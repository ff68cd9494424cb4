"""Dropout: entries of an array are set to zero at random, and the others scaled up so that the mean stays.

What is dropped is told by a hash of a seed and of an entry's place, so nothing is drawn and stored: the backward pass computes it again.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp


def dropout(x: jax.Array, key: jax.Array, rate: float | jax.Array, shape: tuple[int, ...] | None = None) -> jax.Array:
    """Drop entries of ``x``, or whole slices of it (Srivastava et al., 2014).

    Args:
        x: any shape and float dtype.
        key: a scalar random key.
        rate: the probability of a zero, in [0, 1); a float32 scalar array where it differs from layer to layer of a scan.
        shape: the shape of the random draw, which is broadcast over x: 1 along an axis whose entries are dropped together. None is x's shape.

    Returns:
        x's shape and dtype; entries that stay are divided by ``1 - rate``.
    """
    seeds = jax.lax.bitcast_convert_type(jax.random.bits(key, (2,), jnp.uint32), jnp.int32)
    return _dropped(x, seeds, jnp.asarray(rate, jnp.float32), x.shape if shape is None else shape)


def mixed(x: jax.Array) -> jax.Array:
    """Return a permutation of int32 whose every output bit hangs on every input bit (C. Wellons' ``lowbias32``, nullprogram.com/blog/2018/07/31)."""
    x = (x ^ jax.lax.shift_right_logical(x, 16)) * 0x7FEB352D
    x = (x ^ jax.lax.shift_right_logical(x, 15)) * (0x846CA68B - 2**32)
    return x ^ jax.lax.shift_right_logical(x, 16)


def _factors(seeds: jax.Array, rate: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Return what entries are multiplied by, of ``shape``, float32: 0, or 1 / (1 - rate). The two seeds are int32; most of the hash is of rows and columns."""
    columns = mixed(jnp.arange(shape[-1], dtype=jnp.int32) + seeds[0]) if shape else seeds[0]
    rows = mixed(jnp.arange(math.prod(shape[:-1]), dtype=jnp.int32) + seeds[1])
    drawn = mixed(jnp.expand_dims(columns, range(len(shape) - 1)) + rows.reshape(*shape[:-1], *[1] * bool(shape)))
    kept = jax.lax.shift_right_logical(drawn, 8) >= jnp.round(rate * 2**24).astype(jnp.int32)
    return jnp.where(kept, 1 / (1 - rate), 0.0).reshape(shape)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _dropped(x: jax.Array, seeds: jax.Array, rate: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return x * _factors(seeds, rate, shape).astype(x.dtype)


def _forward(x: jax.Array, seeds: jax.Array, rate: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _dropped(x, seeds, rate, shape), (seeds, rate)


def _backward(shape: tuple[int, ...], saved: tuple[jax.Array, jax.Array], d_out: jax.Array) -> tuple[jax.Array, None, None]:
    return d_out * _factors(*saved, shape).astype(d_out.dtype), None, None


_dropped.defvjp(_forward, _backward)
