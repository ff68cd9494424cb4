"""The attention contract: GQA without repeating keys, structured masks, float32 softmax, a backend chosen by platform and shape.

B batch, T query length, S key length, N query heads, K key heads (N a multiple of K), H head size, V value size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax

from unipixel_jax.ops.attention import xla, xla_chunked
from unipixel_jax.ops.attention.mask import AttnMask

BACKENDS: Mapping[str, Callable[..., jax.Array]] = MappingProxyType({"xla": xla.attend, "xla_chunked": xla_chunked.attend})

CHUNK_ABOVE = 4_000_000
"""Scores per call from which blocks beat the whole matrix on a CPU: 16 MB of float32, half of a common last-level cache. Rows that are no longer
than one block gain nothing from it, however many (Hiera's windows: 128 times 196 x 196)."""


def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: AttnMask | None = None, *, scale: float | None = None, implementation: str | None = None
) -> jax.Array:
    """``softmax(q k^T * scale) v`` over the visible keys.

    Args:
        q: [B, T, N, H], float32 or bfloat16.
        k: [B, S, K, H], q's dtype.
        v: [B, S, K, V], q's dtype.
        mask: who sees whom; None: all see all. A query with no visible key gives zeros and passes zero gradients.
        scale: default ``H ** -0.5``.
        implementation: a name in ``BACKENDS``; None picks by shape.

    Returns:
        [B, T, N, V] in q's dtype.

    Raises:
        ValueError: shapes or dtypes that do not fit together, or an unknown implementation; the message names both sides.
    """
    _check(q, k, v, mask)
    (b, t, n, h), (_, s, kh, _) = q.shape, k.shape
    long = t > xla_chunked.Q_BLOCK or s > xla_chunked.KV_BLOCK
    name = implementation or ("xla_chunked" if long and b * n * t * s > CHUNK_ABOVE else "xla")
    if name not in BACKENDS:
        raise ValueError(f"implementation is {name!r}, expected one of {', '.join(BACKENDS)}")
    grouped = q.reshape(b, t, kh, n // kh, h).transpose(0, 2, 3, 1, 4)
    out = BACKENDS[name](grouped, k.swapaxes(1, 2), v.swapaxes(1, 2), mask or AttnMask(), h**-0.5 if scale is None else scale)
    return out.transpose(0, 3, 1, 2, 4).reshape(b, t, n, v.shape[-1]).astype(q.dtype)


def _check(q: jax.Array, k: jax.Array, v: jax.Array, mask: AttnMask | None) -> None:
    if q.ndim != 4 or k.ndim != 4 or v.ndim != 4:
        raise ValueError(f"q, k and v must have 4 dimensions [batch, length, heads, size], got {q.shape}, {k.shape}, {v.shape}")
    if q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise ValueError(f"q {q.shape} and k {k.shape} must agree in batch and head size")
    if k.shape[:3] != v.shape[:3]:
        raise ValueError(f"k {k.shape} and v {v.shape} must agree in batch, length and heads")
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"q has {q.shape[2]} heads, which k's {k.shape[2]} do not divide")
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q, k and v must have one dtype, got {q.dtype}, {k.dtype}, {v.dtype}")
    if mask is None:
        return
    if (mask.q_segments is None) != (mask.kv_segments is None):
        raise ValueError("q_segments and kv_segments must be given together")
    for name, segments, want in (("q_segments", mask.q_segments, q.shape[:2]), ("kv_segments", mask.kv_segments, k.shape[:2])):
        if segments is not None and segments.shape != want:
            raise ValueError(f"{name} has shape {segments.shape}, expected {want}")
