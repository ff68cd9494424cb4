"""Which backend computes a call of ``attention``, by platform and shape, and whether its arguments fit together.

B batch, T query length, S key length, N query heads, K key heads (N a multiple of K), H head size, V value size.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Protocol

import jax

from unipixel_jax.errors import UserError
from unipixel_jax.ops.attention import cudnn, pallas_gpu, pallas_tpu, windows, xla, xla_chunked
from unipixel_jax.ops.attention.dropout import WeightDropout
from unipixel_jax.ops.attention.mask import AttnMask
from unipixel_jax.ops.attention.spec import Spec


class Backend(Protocol):
    """A module that computes attention, with the groups of queries that share a key head apart."""

    def why_not(self, spec: Spec) -> str | None:
        """Why it cannot do such a call, or None if it can."""

    def attend(
        self, q: jax.Array, k: jax.Array, v: jax.Array, mask: AttnMask, scale: float, dropout: WeightDropout | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Attend from q [B, K, G, T, H] to k [B, K, S, H] and v [B, K, S, V]; return [B, K, G, T, V] and the log-sum-exp [B, K, G, T] float32."""


BACKENDS: Mapping[str, Backend] = MappingProxyType({"xla": xla, "xla_chunked": xla_chunked, "pallas_tpu": pallas_tpu, "pallas_gpu": pallas_gpu, "cudnn": cudnn})

CHUNK_ABOVE = 4_000_000
"""Scores per call from which blocks beat the whole matrix on a CPU: 16 MB of float32, half of a common last-level cache. Rows that are no longer
than one block gain nothing from it, however many (Hiera's windows: 128 times 196 x 196)."""

DENSE_BELOW = 256 * 512
"""Pairs of a query and a key up to which an accelerator gains nothing from blocks: the decoder's few tokens, a token against a cache."""

WINDOWS_FROM = 64
"""Queries and keys from which accelerators take kernels for windows: the shortest rows for which the compiled program was compared with that of ``xla``."""

use_attention = jax.make_user_context(None)
"""``with use_attention("pallas_gpu"):`` has every call inside that names no implementation use that one, or raise where it cannot. Compiled programs are
kept apart by it."""

_LOG = logging.getLogger(__name__)


def backend_for(spec: Spec, implementation: str | None) -> Backend:
    """The backend of that name, or of ``use_attention``, or the chosen one.

    Raises:
        UserError: there is no such backend, or it cannot do this.
    """
    name = implementation or use_attention.value or choose(spec)
    if name not in BACKENDS:
        raise UserError(f"attention by {name!r} is unknown: expected one of {', '.join(BACKENDS)}")
    reason = BACKENDS[name].why_not(spec)
    if reason is not None:
        raise UserError(f"attention by {name!r} cannot do {spec}: {reason}")
    return BACKENDS[name]


@lru_cache(maxsize=1024)
def choose(spec: Spec) -> str:
    """The backend for a call: dense products for few keys or queries, blocks for many, and kernels for windows. Each choice is logged once.

    cuDNN comes first on a GPU, but not with segments, which it takes only as a matrix of booleans.
    """
    if spec.platform in ("tpu", "gpu") and spec.queries * spec.keys >= DENSE_BELOW:
        candidates = ("pallas_tpu",) if spec.platform == "tpu" else ("pallas_gpu",) if spec.segmented else ("cudnn", "pallas_gpu")
        name = next((c for c in candidates if BACKENDS[c].why_not(spec) is None), "xla_chunked")
    elif (kernels := {"tpu": "pallas_tpu", "gpu": "pallas_gpu"}.get(spec.platform)) and _is_window(spec) and BACKENDS[kernels].why_not(spec) is None:
        name = kernels
    else:
        long = spec.queries > xla_chunked.Q_BLOCK or spec.keys > xla_chunked.KV_BLOCK
        name = "xla_chunked" if long and spec.scores > CHUNK_ABOVE else "xla"
    _LOG.info("attention of %s: %s", spec, name)
    return name


def _is_window(spec: Spec) -> bool:
    return min(spec.queries, spec.keys) >= WINDOWS_FROM and windows.why_not(spec) is None


def check(q: jax.Array, k: jax.Array, v: jax.Array, mask: AttnMask, dropout: WeightDropout | None = None) -> None:
    """Raise a ValueError, which names the arguments and both shapes, unless all fit together."""
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
    if (mask.q_segments is None) != (mask.kv_segments is None):
        raise ValueError("q_segments and kv_segments must be given together")
    if dropout is not None and (dropout.seeds.shape != (q.shape[0], k.shape[2]) or not 0 <= dropout.rate < 1):
        raise ValueError(f"dropout has seeds {dropout.seeds.shape} and rate {dropout.rate}, expected {(q.shape[0], k.shape[2])} and a rate in [0, 1)")
    wanted = {"q_segments": q.shape[:2], "kv_segments": k.shape[:2], "kv_lengths": k.shape[:1]}
    for name, want in wanted.items():
        given = getattr(mask, name)
        if given is not None and given.shape != want:
            raise ValueError(f"{name} has shape {given.shape}, expected {want} for q {q.shape} and k {k.shape}")
