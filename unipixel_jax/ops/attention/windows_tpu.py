"""Attention within short rows on TPUs: our own Mosaic (Pallas) kernels, one forward and one backward. Letters as in windows.py.

A step of the grid takes as many windows as fit VMEM, with all their heads, and works through them. Lengths and head sizes that fill no whole tile are the
compiler's to mask. On a CPU the same kernels run in Pallas's interpreter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from unipixel_jax.ops.attention import windows
from unipixel_jax.ops.attention.mask import AttnMask
from unipixel_jax.ops.attention.spec import Spec
from unipixel_jax.ops.attention.windows import Heads, Segments
from unipixel_jax.ops.attention.windows_tpu_kernels import backward, each, forward

VMEM_BUDGET = 8 * 2**20
"""Bytes that the blocks of a step's windows take, two buffers each, of the 16 MiB that a kernel gets; the rest is for the heads at work."""


def why_not(spec: Spec) -> str | None:
    """Why these kernels cannot do `spec` on a device that ``pallas_tpu`` can use, or None if they can."""
    if (reason := windows.why_not(spec)) is not None:
        return reason
    itemsize, size, width = jnp.dtype(spec.dtype).itemsize, spec.head_size, spec.value_size
    rows = ((spec.queries, spec.heads * size), (spec.keys, spec.key_heads * size), (spec.keys, spec.key_heads * width), (spec.queries, spec.heads * width))
    if vmem(rows, itemsize) > VMEM_BUDGET:
        return f"a window with all heads needs {vmem(rows, itemsize)} bytes of VMEM, and {VMEM_BUDGET} are there"
    return None


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: AttnMask, scale: float) -> tuple[jax.Array, jax.Array]:
    """Compute what ``xla.attend`` computes, within windows and without dropout; arguments and results as there."""
    return windows.attend(_launch, q, k, v, mask, scale)


def vmem(rows: Sequence[Sequence[int]], itemsize: int) -> int:
    """Bytes that a window of the backward kernel, which has more blocks, takes of VMEM.

    Args:
        rows: the length and the width of queries, keys, values and results. All but the results are there a second time, as gradients.
        itemsize: bytes of a number.
    """
    sizes: list[int] = [pl.cdiv(length * itemsize, 32) * 32 * pl.cdiv(width, 128) * 128 for length, width in rows]
    return 2 * (2 * sum(sizes) - sizes[-1])


def _launch(heads: Heads, segments: Segments | None, q: jax.Array, k: jax.Array, v: jax.Array, *d_out: jax.Array) -> tuple[jax.Array, ...]:
    """One of the two kernels, see ``windows.Launch``."""
    (batch, queries, _), keys = q.shape, k.shape[1]
    out = jax.ShapeDtypeStruct((batch, queries, heads.number * heads.value_size), q.dtype)
    results = (q, k, v) if d_out else (out,)
    need = vmem(tuple(a.shape[1:] for a in (q, k, v, out)), q.dtype.itemsize)
    most = max(1, min(batch, VMEM_BUDGET // need))
    per_step = pl.cdiv(batch, pl.cdiv(batch, most))
    arrays = (q, k, v, *d_out) if segments is None else (*(a[:, None] for a in segments), q, k, v, *d_out)
    scores = batch * heads.number * queries * keys
    products = (3 * heads.size + 2 * heads.value_size) if d_out else heads.size + heads.value_size

    def spec(a: Any) -> pl.BlockSpec:
        return pl.BlockSpec((per_step, *a.shape[1:]), lambda step: (step, 0, 0))

    def body(*refs: Any) -> None:
        masks, given, given_back = refs[: len(arrays) - 3 - len(d_out)], refs[len(arrays) - 3 - len(d_out) : len(arrays)], refs[len(arrays) :]

        def window(w: Any) -> None:
            seen = None
            if masks:
                of_queries, of_keys = (masks[0][w], masks[1][w].T) if d_out else (masks[0][w].T, masks[1][w])
                seen = (of_queries == of_keys) & (of_keys != 0)
            found = (backward if d_out else forward)(heads, seen, *(ref[w] for ref in given))
            for ref, value in zip(given_back, found if d_out else (found,), strict=True):
                ref[w] = value

        each(per_step, heads, window)

    varying = jax.typeof(q).manual_axis_type

    def run(*args: jax.Array, interpret: bool) -> Any:
        return pl.pallas_call(
            body,
            grid=(pl.cdiv(batch, per_step),),
            in_specs=[spec(a) for a in arrays],
            out_specs=[spec(a) for a in results],
            out_shape=[jax.ShapeDtypeStruct(a.shape, a.dtype, manual_axis_type=varying) for a in results],
            compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
            cost_estimate=pl.CostEstimate(
                flops=2 * scores * products, transcendentals=scores, bytes_accessed=sum(math.prod(a.shape) * a.dtype.itemsize for a in (*arrays, *results))
            ),
            interpret=interpret,
            name="windows_backward" if d_out else "windows_forward",
        )(*args)

    found: tuple[jax.Array, ...] = tuple(jax.lax.platform_dependent(*arrays, tpu=partial(run, interpret=False), cpu=partial(run, interpret=True)))
    return found
