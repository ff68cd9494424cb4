"""What the kernels for windows share: the layout, the gradient, and the sizes that they are compiled for.

A window is so short that its whole score matrix stays on the chip, so nothing is saved for the backward pass but the inputs, and one kernel gives all three
gradients. The heads stay side by side as a projection leaves them, [B, T, N H], and are cut inside the kernel: an array with the heads apart would have to be
copied, and its head size of 56 or 80 would fill less than the 128 lanes of a TPU's tile.

B windows, T queries and S keys of a window, N query heads, K key heads, G = N / K, H head size, V value size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import jax
from einops import rearrange

from unipixel_jax.ops.attention.mask import AttnMask
from unipixel_jax.ops.attention.spec import Spec
from unipixel_jax.ops.attention.xla import log_sum_exp

LONGEST = 256
"""Queries or keys of the longest window: 16 x 16 patches, in SAM 2.1 large."""
WIDEST = 128
"""The largest head size."""
Segments = tuple[jax.Array, jax.Array]


@dataclass(frozen=True)
class Heads:
    """What a kernel is told of the heads.

    Attributes:
        number: of query heads, N.
        group: query heads per key head, G.
        size: of a query or key, H.
        value_size: of a value, V.
        scale: of the scores.
    """

    number: int
    group: int
    size: int
    value_size: int
    scale: float

    def queries(self, head: int) -> slice:
        """The features of a head in queries [T, N H]."""
        return slice(head * self.size, (head + 1) * self.size)

    def keys(self, head: int) -> slice:
        """The features of a query head's key head in keys [S, K H]."""
        return self.queries(head // self.group)

    def results(self, head: int) -> slice:
        """The features of a head in results [T, N V]."""
        return slice(head * self.value_size, (head + 1) * self.value_size)

    def values(self, head: int) -> slice:
        """The features of a query head's values in values [S, K V]."""
        return self.results(head // self.group)


class Launch(Protocol):
    """Runs the kernels of one backend."""

    def __call__(self, heads: Heads, segments: Segments | None, q: jax.Array, k: jax.Array, v: jax.Array, *d_out: jax.Array) -> tuple[jax.Array, ...]:
        """Queries [B, T, N H], keys [B, S, K H] and values [B, S, K V] to the result [B, T, N V]; with its cotangent, to the gradients of all three."""


def why_not(spec: Spec) -> str | None:
    """Why no kernel for windows can do such a call of float32 or bfloat16, or None."""
    if max(spec.queries, spec.keys) > LONGEST:
        return f"windows have at most {LONGEST} queries and keys, got {spec.queries} and {spec.keys}"
    if max(spec.head_size, spec.value_size) > WIDEST:
        return f"head size {spec.head_size} and value size {spec.value_size} must be at most {WIDEST}"
    return "windows have neither a causal mask nor dropout" if spec.causal or spec.dropout else None


def attend(launch: Launch, q: jax.Array, k: jax.Array, v: jax.Array, mask: AttnMask, scale: float) -> tuple[jax.Array, jax.Array]:
    """``xla.attend`` without dropout, by a backend's kernels. The log-sum-exp is computed by ``xla``, and costs nothing where nobody asks for it."""
    heads = Heads(q.shape[1] * q.shape[2], q.shape[2], q.shape[4], v.shape[3], float(scale))
    # undoes what the caller did to the layout, so that nothing is copied
    flat = rearrange(q, "b k g t h -> b t (k g h)"), *(rearrange(a, "b k s h -> b s (k h)") for a in (k, v))
    out = _windows(launch, heads, mask.segments, *flat)
    return rearrange(out, "b t (k g v) -> b k g t v", k=q.shape[1], g=q.shape[2]), log_sum_exp(q, k, mask, scale)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _windows(launch: Launch, heads: Heads, segments: Segments | None, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    (out,) = launch(heads, segments, q, k, v)
    return out


def _forward(launch: Launch, heads: Heads, segments: Segments | None, q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, tuple[Any, ...]]:
    return _windows(launch, heads, segments, q, k, v), (segments, q, k, v)


def _backward(launch: Launch, heads: Heads, saved: tuple[Any, ...], d_out: jax.Array) -> tuple[Any, ...]:
    return None, *launch(heads, *saved, d_out)


_windows.defvjp(_forward, _backward)
