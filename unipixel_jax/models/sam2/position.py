"""Position codes of SAM 2: sines over a grid (made on the host) and over time, and random Fourier features of points."""

from __future__ import annotations

import math
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange


@lru_cache(maxsize=16)
def sine_grid(side: int, dim: int) -> np.ndarray:
    """Return the sine code of a square grid (reference: sam2/modeling/position_encoding.py, PositionEmbeddingSine, normalised, temperature 10000).

    Returns:
        [side, side, dim] float32; the first half of the channels codes the row, the second the column.
    """
    half = dim // 2
    at = np.arange(1, side + 1, dtype=np.float32) / np.float32(side + 1e-6) * np.float32(2 * math.pi)
    period = np.float32(10000) ** (2 * (np.arange(half) // 2).astype(np.float32) / half)
    angles = at[:, None] / period[None]
    code = rearrange([np.sin(angles[:, 0::2]), np.cos(angles[:, 1::2])], "both at pairs -> at (pairs both)")
    rows = np.broadcast_to(code[:, None], (side, side, half))
    return np.concatenate([rows, rows.swapaxes(0, 1)], axis=-1).astype(np.float32)


def sine_1d(position: jax.Array, dim: int) -> jax.Array:
    """Return the sine code of scalars, [...] float32 to [..., dim] float32, sines before cosines (reference: sam2/modeling/sam2_utils.py, get_1d_sine_pe)."""
    half = dim // 2
    period = np.float32(10000) ** (2 * (np.arange(half) // 2).astype(np.float32) / half)
    angles = position[..., None] / period.reshape((1,) * position.ndim + (half,))
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def fourier(unit: jax.Array, matrix: jax.Array) -> jax.Array:
    """Return random Fourier features (Tancik et al., 2020) of coordinates in 0..1: ``unit`` [..., K] with ``matrix`` [K, d] to [..., 2 d] float32."""
    projected = jnp.matmul(2 * unit.astype(jnp.float32) - 1, matrix.astype(jnp.float32), precision="highest") * jnp.float32(2 * math.pi)
    return jnp.concatenate([jnp.sin(projected), jnp.cos(projected)], axis=-1)
