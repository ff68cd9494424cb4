"""Square windows of a feature map, padded at the right and bottom (reference: sam2/modeling/backbones/utils.py)."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def partition(x: jax.Array, window: int, fill: jax.Array) -> jax.Array:
    """x [B, h, w, C] to [B * windows, window, window, C], windows row-major, ``fill`` [C] where the map ends."""
    b, h, w, c = x.shape
    fill = fill.astype(x.dtype)[None, None, None]
    if w % window:
        x = jnp.concatenate([x, jnp.broadcast_to(fill, (b, h, -w % window, c))], axis=2)
    if h % window:
        x = jnp.concatenate([x, jnp.broadcast_to(fill, (b, -h % window, x.shape[2], c))], axis=1)
    rows, columns = x.shape[1] // window, x.shape[2] // window
    x = x.reshape(b, rows, window, columns, window, c).swapaxes(2, 3)
    return x.reshape(b * rows * columns, window, window, c)


def merge(windows: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Inverse of ``partition``: [B * windows, s, s, C] to [B, *size, C], the padding dropped."""
    s, c = windows.shape[1], windows.shape[3]
    rows, columns = -(-size[0] // s), -(-size[1] // s)
    x = windows.reshape(-1, rows, columns, s, s, c).swapaxes(2, 3).reshape(-1, rows * s, columns * s, c)
    return x[:, : size[0], : size[1]]
