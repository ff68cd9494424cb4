"""What the kernels for TPUs and GPUs share: flash attention's value and gradient in four kernels, and the sizes that each is compiled for.

FlashAttention-2 (arXiv 2307.08691): the forward pass saves the log-sum-exp of each row, from which the backward kernels compute the weights again, one for
the gradient of the queries (dq) and one for those of keys and values (dkv). Where queries or keys are constants, as in SAM 2's memory attention, their
gradients are not computed: that of the values alone (dv) takes half of the products.

B batch, K key heads, G queries per key head, T query length, S key length, H head size, V value size; tq and tk queries and keys per block.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.experimental import pallas as pl

from unipixel_jax.ops.attention.dropout import WeightDropout
from unipixel_jax.ops.attention.mask import AttnMask

LOG2E = math.log2(math.e)
"""Kernels keep scores in base 2, where the exponential is one instruction of the hardware and needs no factor of its own."""

Kernel = Literal["forward", "dq", "dkv", "dv"]


@dataclass(frozen=True)
class Job:
    """The static description for which a kernel is compiled.

    Attributes:
        kernel: which of the four. A program of dkv and dv stays at a block of keys and visits blocks of queries, the others the other way round.
        sizes: of each letter of a layout such as "bkgth", before lengths are padded: b, k, g, t, s, h, v and 1.
        tq: queries per block.
        tk: keys per block.
        causal: as in AttnMask.
        scale: of the scores.
        rate: at which weights are dropped.
    """

    kernel: Kernel
    sizes: Mapping[str, int]
    tq: int
    tk: int
    causal: bool
    scale: float
    rate: float

    @property
    def by_keys(self) -> bool:
        """Whether a program stays at a block of keys."""
        return self.kernel in ("dkv", "dv")

    @property
    def query_blocks(self) -> int:
        """Blocks that hold all queries."""
        return pl.cdiv(self.sizes["t"], self.tq)

    @property
    def key_blocks(self) -> int:
        """Blocks that hold all keys."""
        return pl.cdiv(self.sizes["s"], self.tk)

    @property
    def products(self) -> int:
        """Numbers that are multiplied per score: the inner and outer widths of the matrix products added up."""
        h, v = self.sizes["h"], self.sizes["v"]
        return {"forward": h + v, "dq": 2 * h + v, "dkv": 2 * h + 2 * v, "dv": h + v}[self.kernel]


class Given(NamedTuple):
    """The arguments of a call of ``attend`` in xla.py, whose shapes are described there."""

    q: jax.Array
    k: jax.Array
    v: jax.Array
    mask: AttnMask
    dropout: WeightDropout | None
    scale: float


class Launch(Protocol):
    """Runs a kernel of one backend."""

    def __call__(self, kernel: Kernel, given: Given, rows: tuple[jax.Array, ...] = ()) -> tuple[jax.Array, ...]:
        """Run a kernel. Backward kernels are given ``rows``: the result's cotangent [B, K, G, T, V], the log-sum-exp and delta [B, K, G, T] float32. The
        forward kernel returns the result and the log-sum-exp, dq the gradient of q, dkv those of k and v, dv that of v.
        """


@partial(jax.tree_util.register_dataclass, data_fields=(), meta_fields=("queries", "keys"))
@dataclass(frozen=True)
class _Constant:
    """Whether queries and keys are constants, of which no gradient is wanted."""

    queries: bool
    keys: bool


@partial(jax.custom_vjp, nondiff_argnums=(0, 6))
def flash(
    launch: Launch, q: jax.Array, k: jax.Array, v: jax.Array, mask: AttnMask, dropout: WeightDropout | None, scale: float
) -> tuple[jax.Array, ...]:
    """``attend`` of xla.py by a backend's kernels, with its gradient."""
    return launch("forward", Given(q, k, v, mask, dropout, scale))


def _forward(launch: Launch, q: Any, k: Any, v: Any, mask: Any, dropout: Any, scale: float) -> tuple[tuple[jax.Array, ...], tuple[Any, ...]]:
    """Arguments come with the knowledge of whether they depend on what is differentiated (``symbolic_zeros``)."""
    constant = _Constant(not q.perturbed, not k.perturbed)
    q, k, v, mask, dropout = jax.tree.map(lambda a: a.value, (q, k, v, mask, dropout))
    out, lse = launch("forward", Given(q, k, v, mask, dropout, scale))
    return (out, lse), (constant, q, k, v, mask, dropout, out, lse)


def _backward(launch: Launch, scale: float, saved: tuple[Any, ...], cotangents: tuple[Any, ...]) -> tuple[Any, ...]:
    constant, q, k, v, mask, dropout, out, lse = saved
    d_out, d_lse = (jnp.zeros(d.shape, d.dtype) if isinstance(d, SymbolicZero) else d for d in cotangents)
    # a score moves its row's log-sum-exp by its weight, as it moves the result by that times (v - result)
    delta = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=-1) - d_lse
    run = partial(launch, given=Given(q, k, v, mask, dropout, scale), rows=(d_out, lse, delta))
    d_q = None if constant.queries else run("dq")[0]
    d_k, d_v = (None, *run("dv")) if constant.keys else run("dkv")
    return d_q, d_k, d_v, None, None


flash.defvjp(_forward, _backward, symbolic_zeros=True)


def job_of(kernel: Kernel, given: Given, tq: int, tk: int) -> Job:
    """Describe a launch of a kernel, cut into blocks of tq queries and tk keys."""
    sizes = dict(zip("bkgth", given.q.shape, strict=True)) | {"s": given.k.shape[2], "v": given.v.shape[3], "1": 1}
    return Job(kernel, sizes, tq, tk, given.mask.causal, given.scale, 0.0 if given.dropout is None else given.dropout.rate)
