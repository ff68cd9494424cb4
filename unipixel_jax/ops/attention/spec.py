"""What a call of ``attention`` asks for: all that a backend needs to know to accept or refuse it, and to choose its blocks."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from unipixel_jax.ops.attention.dropout import WeightDropout
from unipixel_jax.ops.attention.mask import AttnMask


@dataclass(frozen=True)
class Spec:
    """Attributes:
    batch, queries, keys, heads, key_heads, head_size, value_size: the sizes B, T, S, N, K, H, V of ``attention``.
    dtype: of queries, keys, values and result.
    causal, segmented: what the mask has.
    dropout: whether weights are dropped.
    joined: whether the log-sum-exp is needed, by which parts over different keys are joined.
    platform: "cpu", "gpu" or "tpu".
    """

    batch: int
    queries: int
    keys: int
    heads: int
    key_heads: int
    head_size: int
    value_size: int
    dtype: jnp.dtype
    causal: bool
    segmented: bool
    platform: str
    dropout: bool = False
    joined: bool = False

    @staticmethod
    def of(
        q: jax.Array, k: jax.Array, v: jax.Array, mask: AttnMask, dropout: WeightDropout | None, platform: str, joined: bool = False
    ) -> Spec:
        """The specification of a backend's call: q [B, K, G, T, H], k [B, K, S, H], v [B, K, S, V]."""
        (b, kh, g, t, h), s = q.shape, k.shape[2]
        sizes = b, t, s, kh * g, kh, h, v.shape[-1]
        return Spec(*sizes, jnp.dtype(q.dtype), mask.causal, mask.segments is not None, platform, dropout is not None, joined)

    @property
    def scores(self) -> int:
        """Pairs of a query and a key, over all heads."""
        return self.batch * self.heads * self.queries * self.keys

    def __str__(self) -> str:
        parts = {"causal": self.causal, "segments": self.segmented, "dropout": self.dropout}
        mask = " and ".join(name for name, given in parts.items() if given) or "all visible"
        return (
            f"{self.batch} x {self.queries} queries x {self.keys} keys, {self.heads} heads on {self.key_heads}, size {self.head_size}, "
            f"{self.dtype.name}, {mask}, {self.platform}"
        )
