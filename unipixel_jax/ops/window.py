"""Square windows of a feature map, padded at the right and bottom (reference: sam2/modeling/backbones/utils.py)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from einops import rearrange


def partition(x: jax.Array, window: int, fill: jax.Array) -> jax.Array:
    """x [B, h, w, C] to [B * windows, window, window, C], windows row-major, ``fill`` [C] where the map ends."""
    b, h, w, c = x.shape
    fill = fill.astype(x.dtype)[None, None, None]
    if w % window:
        x = jnp.concatenate([x, jnp.broadcast_to(fill, (b, h, -w % window, c))], axis=2)
    if h % window:
        x = jnp.concatenate([x, jnp.broadcast_to(fill, (b, -h % window, x.shape[2], c))], axis=1)
    return rearrange(x, "b (rows h) (columns w) c -> (b rows columns) h w c", h=window, w=window)


def merge(windows: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Inverse of ``partition``: [B * windows, s, s, C] to [B, *size, C], the padding dropped."""
    rows, columns = (-(-length // windows.shape[1]) for length in size)
    x = rearrange(windows, "(b rows columns) h w c -> b (rows h) (columns w) c", rows=rows, columns=columns)
    return x[:, : size[0], : size[1]]
