"""Rotary position codes: multimodal and 2-D for Qwen2.5-VL, axial for SAM 2. Angles, sines and products are float32.

B batch, T tokens, P patches, N heads, H head size.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np


def frequencies(dim: int, theta: float, count: int | None = None) -> jax.Array:
    """Return the frequencies ``theta ** (-2i / dim)`` for i below ``count`` (default dim / 2): [count] float32."""
    exponent = jnp.arange(dim // 2 if count is None else count, dtype=jnp.float32) * (2.0 / dim)
    return 1.0 / jnp.power(jnp.float32(theta), exponent)


def mrope_angles(position_ids: jax.Array, head_dim: int, theta: float, section: tuple[int, ...]) -> jax.Array:
    """Return the angles of Qwen2-VL's multimodal rope (arXiv 2409.12191, section 2.1).

    Args:
        position_ids: [3, B, T] integers: time, height, width.
        head_dim: H.
        theta: the base of the frequencies.
        section: how many of the head's H / 2 rotary pairs follow time, height and width; they sum to H / 2.

    Returns:
        [B, T, H / 2] float32, radians.
    """
    freq = frequencies(head_dim, theta)
    angles = position_ids.astype(jnp.float32)[..., None] * freq[None, None, None]
    bounds = [0]
    for n in section:
        bounds.append(bounds[-1] + n)
    return jnp.concatenate([angles[i, :, :, a:b] for i, (a, b) in enumerate(pairwise(bounds))], axis=-1)


def grid_angles(positions: jax.Array, head_dim: int, theta: float = 1e4) -> jax.Array:
    """Return the angles of Qwen2-VL's 2-D vision rope: the first half of the pairs follows the row, the second half the column.

    Args:
        positions: [P, 2] integers (row, column).
        head_dim: H.
        theta: the base of the frequencies.

    Returns:
        [P, H / 2] float32, radians.
    """
    freq = frequencies(head_dim // 2, theta)
    return (positions.astype(jnp.float32)[..., None] * freq[None, None]).reshape(positions.shape[0], head_dim // 2)


def rotate_half(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotate the pairs (i, i + H/2) of each head: x [..., N, H] with cos and sin [..., H/2], which have no head axis; returns x's shape and dtype."""
    cos, sin = cos[..., None, :], sin[..., None, :]
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


@lru_cache(maxsize=16)
def axial_rope(side: int, dim: int, theta: float = 1e4) -> tuple[np.ndarray, np.ndarray]:
    """Return the cosines and sines of SAM 2's axial rope (reference: sam2/modeling/position_encoding.py, compute_axial_cis) on a side x side grid.

    The first half of the pairs follows the column, the second the row. They are made on the host, because XLA's CPU backend would compute them again for every
    element that it multiplies (33 million sines and cosines a frame for the keys of the memory attention at 768 pixels).

    Returns:
        Two arrays [side * side, dim / 2] float32, row-major.
    """
    freq = np.float32(theta) ** (np.arange(dim // 4, dtype=np.float32) * np.float32(-4.0 / dim))
    row, column = np.divmod(np.arange(side * side), side)
    angles = np.concatenate([column[:, None] * freq[None], row[:, None] * freq[None]], axis=-1).astype(np.float32)
    return np.cos(angles), np.sin(angles)
