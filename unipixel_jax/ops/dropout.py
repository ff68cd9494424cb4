"""Dropout: entries of an array are set to zero at random, and the others scaled up so that the mean stays."""

from __future__ import annotations

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
    stays = 1 - jnp.asarray(rate, jnp.float32)
    drawn = jax.random.bernoulli(key, stays, x.shape if shape is None else shape)
    return x * jnp.where(drawn, 1 / stays, 0.0).astype(x.dtype)
