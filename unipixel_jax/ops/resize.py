"""Resampling as two small matrix products, with torch's conventions (half-pixel centres, edge clamping, no antialiasing).

``jax.image.resize`` differs: its cubic kernel has a = -0.5 and its linear mode antialiases by default. The weights are built on the host.
"""

from __future__ import annotations

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from einops import repeat

from unipixel_jax.core.platform import platform


def resize_bilinear(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """``F.interpolate(mode="bilinear", align_corners=False)``: x [..., h, w] to [..., *size], computed in float32, returned so."""
    return _apply(x, size, "linear")


def resize_bicubic(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """``F.interpolate(mode="bicubic", align_corners=False)`` (a = -0.75): x [..., h, w] to [..., *size], computed in float32, returned so."""
    return _apply(x, size, "cubic")


def upsample_nearest2(x: jax.Array) -> jax.Array:
    """Twice the height and width by repetition: x [B, h, w, C] to [B, 2h, 2w, C]."""
    return repeat(x, "b h w c -> b (h rows) (w columns) c", rows=2, columns=2)


def _apply(x: jax.Array, size: tuple[int, int], kind: str) -> jax.Array:
    rows, columns = interpolation_weights(x.shape[-2], size[0], kind), interpolation_weights(x.shape[-1], size[1], kind)
    if kind == "cubic" and platform() == "gpu":
        # The same as sums: XLA for GPUs (of jax 0.10.2) ends with an internal error at the gradient of these products for SAM's position code.
        lead = (1,) * (x.ndim - 2)
        x = jnp.sum(rows.reshape(*lead, *rows.shape, 1) * x.astype(jnp.float32)[..., None, :, :], axis=-2)
        return jnp.sum(x[..., None, :] * columns.reshape(*lead, 1, *columns.shape), axis=-1)
    return jnp.matmul(jnp.matmul(rows, x.astype(jnp.float32), precision="highest"), columns.T, precision="highest")


@lru_cache(maxsize=64)
def interpolation_weights(source: int, target: int, kind: str) -> np.ndarray:
    """The [target, source] matrix that resamples one axis; ``kind`` is "linear" or "cubic"."""
    centre = (np.arange(target, dtype=np.float64) + 0.5) * (source / target) - 0.5
    if kind == "linear":
        centre = np.maximum(centre, 0.0)
    base = np.floor(centre).astype(np.int64)
    frac = centre - base
    taps = {"linear": ((0, 1 - frac), (1, frac)), "cubic": tuple((k, _cubic(np.abs(frac - k))) for k in (-1, 0, 1, 2))}[kind]
    out = np.zeros((target, source), np.float64)
    for offset, weight in taps:
        np.add.at(out, (np.arange(target), np.clip(base + offset, 0, source - 1)), weight)
    return out.astype(np.float32)


def _cubic(d: np.ndarray, a: float = -0.75) -> np.ndarray:
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))
