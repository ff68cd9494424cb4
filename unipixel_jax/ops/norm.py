"""Normalisations over the last axis, computed in float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """Return ``x / sqrt(mean(x^2) + eps) * weight`` over the last axis (Zhang & Sennrich, 2019): x [..., D], weight [D]; returns x's shape and dtype."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
    return (y * _align(weight, x)).astype(x.dtype)


def layer_norm(x: jax.Array, weight: jax.Array, bias: jax.Array, eps: float) -> jax.Array:
    """Layer normalisation over the last axis with the biased variance (Ba et al., 2016): x [..., D], weight and bias [D]; returns x's shape and dtype."""
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
    return (y * _align(weight, x) + _align(bias, x)).astype(x.dtype)


def _align(w: jax.Array, x: jax.Array) -> jax.Array:
    """Return w [D] in float32 with as many dimensions as x, since rank promotion is an error in this project's tests."""
    return w.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + w.shape)
