"""Flash attention for NVIDIA GPUs: our own Pallas kernels that lower to Triton, forward and backward (FlashAttention-2, arXiv 2307.08691).

Blocks that the mask empties are not visited. Nothing is padded or copied on the way in: loads and stores mask what lies outside of an array. The
gradient has one kernel for dq and one for dk and dv and needs no atomics, so it repeats bit by bit. On a CPU the same kernels run in Pallas's
interpreter. A single query (decoding) is right but slow: one program walks through all its keys.

B batch, K key heads, G query heads per key head, T query length, S key length, H head size, V value size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from unipixel_jax.core.platform import device_kind
from unipixel_jax.ops.attention.dropout import WeightDropout
from unipixel_jax.ops.attention.flash import Given, Job, Kernel, flash, job_of
from unipixel_jax.ops.attention.mask import AttnMask
from unipixel_jax.ops.attention.pallas_gpu_kernels import Segments, attention_dkv, attention_dq, attention_dv, attention_forward
from unipixel_jax.ops.attention.spec import Spec

SIZE_LIMIT = 256


def why_not(spec: Spec) -> str | None:
    """The reason why ``attend`` cannot do such a call, or None if it can."""
    if spec.platform not in ("gpu", "cpu"):
        return f"pallas_gpu runs on gpu, and interpreted on cpu, not on {spec.platform}"
    if jnp.dtype(spec.dtype) not in (jnp.float32, jnp.bfloat16):
        return f"dtype is {jnp.dtype(spec.dtype)}, expected float32 or bfloat16"
    if max(spec.head_size, spec.value_size) > SIZE_LIMIT:
        return f"head size {spec.head_size} and value size {spec.value_size} must be at most {SIZE_LIMIT}"
    return None


BODIES: Mapping[Kernel, Callable[..., None]] = {"forward": attention_forward, "dq": attention_dq, "dkv": attention_dkv, "dv": attention_dv}


class Blocks(NamedTuple):
    """The block sizes of a kernel: queries and keys of a step, warps of a program, and loads in flight."""

    queries: int
    keys: int
    warps: int
    stages: int


class BlockSizes(NamedTuple):
    """The blocks of the kernels; those of dkv are also dv's, which needs less."""

    forward: Blocks
    dq: Blocks
    dkv: Blocks


_BLOCKS = {
    (2, 64): BlockSizes(Blocks(128, 64, 8, 3), Blocks(128, 64, 8, 2), Blocks(64, 64, 4, 2)),
    (2, 128): BlockSizes(Blocks(128, 64, 8, 2), Blocks(64, 64, 4, 2), Blocks(64, 64, 8, 2)),
    (2, 256): BlockSizes(Blocks(64, 64, 8, 2), Blocks(64, 64, 8, 2), Blocks(32, 64, 8, 2)),
    (4, 64): BlockSizes(Blocks(64, 32, 8, 2), Blocks(32, 32, 4, 2), Blocks(32, 32, 8, 2)),
    (4, 128): BlockSizes(Blocks(32, 16, 4, 1), Blocks(32, 16, 4, 1), Blocks(16, 32, 4, 1)),
    (4, 256): BlockSizes(Blocks(32, 32, 8, 1), Blocks(16, 32, 4, 1), Blocks(32, 16, 8, 1)),
}
"""By bytes per number and widened size: large ones that ptxas fits into the registers of A100 and H100 alike (at most 8 bytes spilled), and into their
shared memory (at most 139,264 bytes of 166,912, and 196,608 of 232,448)."""

_HOPPER = {(2, 128): (Blocks(128, 64, 8, 3), Blocks(128, 64, 8, 2)), (2, 256): (Blocks(128, 64, 8, 2), Blocks(64, 64, 8, 2))}
"""The forward and the dq kernel where Hopper, which multiplies from shared memory, has room for more (at most 196,608 bytes)."""


def block_sizes(device_kind: str, head_size: int, value_size: int, queries: int, keys: int, dtype: Any) -> BlockSizes:
    """Blocks that fit the shared memory of the card, which is taken for an A100 unless its name says H100, H200 or GH200."""
    key = jnp.dtype(dtype).itemsize, max(64, widened(head_size), widened(value_size))
    sizes = _BLOCKS[key]
    if key in _HOPPER and any(name in device_kind for name in ("H100", "H200")):
        sizes = BlockSizes(*_HOPPER[key], sizes.dkv)
    return BlockSizes(*(Blocks(min(b.queries, widened(queries)), min(b.keys, widened(keys)), b.warps, b.stages) for b in sizes))


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: AttnMask, scale: float, dropout: WeightDropout | None = None) -> tuple[jax.Array, jax.Array]:
    """Compute what ``xla.attend`` computes by a kernel, whose gradient is a kernel too.

    Args:
        q: [B, K, G, T, H], float32 or bfloat16. Products of float32 are full float32.
        k: [B, K, S, H], q's dtype.
        v: [B, K, S, V], q's dtype.
        mask: who sees whom.
        scale: of the scores.
        dropout: of the weights; the log-sum-exp knows nothing of it.

    Returns:
        [B, K, G, T, V] in q's dtype, zero in rows with no visible key; the log of each row's sum of exponentials [B, K, G, T] float32, ``FLOOR`` there.
    """
    out, lse = flash(_launch, q, k, v, mask, dropout, float(scale))
    return out, lse


def _launch(kernel: Kernel, given: Given, rows: tuple[jax.Array, ...] = ()) -> tuple[jax.Array, ...]:
    """One of the four kernels, see ``flash.Launch``: compiled where the program is lowered for CUDA, interpreted where it is lowered for a CPU."""
    q, k, v, mask, dropout, _ = given
    (b, kh, g, t, h), (s, w) = q.shape, v.shape[2:]
    block = getattr(block_sizes(device_kind(), h, w, t, s, q.dtype), "dkv" if kernel == "dv" else kernel)
    job = job_of(kernel, given, block.queries, block.keys)
    seeds = None if dropout is None else dropout.seeds[:, :, None]
    segments = _segments(job, mask)

    def of_queries(*width: int) -> pl.BlockSpec:
        return _share(2, g, job.query_blocks * job.tq, *map(widened, width))

    def of_keys(width: int) -> pl.BlockSpec:
        return _share(2, job.key_blocks * job.tk, widened(width))

    outputs = {
        "forward": ((of_queries(w), (b, kh, g, t, w), q.dtype), (of_queries(), (b, kh, g, t), jnp.float32)),
        "dq": ((of_queries(h), q.shape, q.dtype),),
        "dkv": ((of_keys(h), k.shape, k.dtype), (of_keys(w), v.shape, v.dtype)),
        "dv": ((of_keys(w), v.shape, v.dtype),),
    }[kernel]
    varying = jax.typeof(q).manual_axis_type
    out_shape = tuple(jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=varying) for _, shape, dtype in outputs)
    args = (q, k, v, segments, seeds, *rows)
    scores = b * kh * g * _pairs(job)
    moved = sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves((args, out_shape)))

    def call(interpret: bool) -> Callable[..., Any]:
        return pl.pallas_call(
            partial(BODIES[kernel], job=job),
            grid=(b, kh, job.key_blocks) if job.by_keys else (b, kh, g, job.query_blocks),
            in_specs=(
                of_queries(h),
                of_keys(h),
                of_keys(w),
                segments and Segments(*(_share(1, *a.shape[1:]) for a in segments)),
                None if seeds is None else _share(2, 1),
                *((of_queries(w), of_queries(), of_queries()) if rows else ()),
            ),
            out_specs=tuple(spec for spec, _, _ in outputs),
            out_shape=out_shape,
            compiler_params=plgpu.CompilerParams(num_warps=block.warps, num_stages=block.stages),
            cost_estimate=pl.CostEstimate(flops=2 * scores * job.products, transcendentals=scores, bytes_accessed=moved),
            interpret=interpret,
            name=f"attention_{kernel}",
        )

    results: tuple[jax.Array, ...] = lax.platform_dependent(*args, cuda=call(False), cpu=call(True))
    return results


def _segments(job: Job, mask: AttnMask) -> Segments | None:
    """The tables of a kernel."""
    if mask.segments is None:
        return None
    t, s = job.query_blocks * job.tq, job.key_blocks * job.tk
    mask = mask.padded(job.sizes["b"], job.sizes["t"], job.sizes["s"], t - job.sizes["t"], s - job.sizes["s"])
    live = mask.live_blocks(job.tq, job.tk, t, s)
    assert mask.segments is not None and live is not None
    live = live.swapaxes(1, 2) if job.by_keys else live
    return Segments(*mask.segments, jnp.argsort(~live, axis=-1, stable=True).astype(jnp.int32), jnp.sum(live, axis=-1, dtype=jnp.int32))


def _pairs(job: Job) -> int:
    """Queries times the keys that they see; what segments hide is not known ahead of time and counts as seen."""
    queries, keys = job.sizes["t"], job.sizes["s"]
    if not job.causal:
        return queries * keys
    reach = min(queries, keys)
    return reach * (reach + 1) // 2 + (queries - reach) * keys


def _share(batch_axes: int, *shape: int) -> pl.BlockSpec:
    """Return the block that a program reads of an array: all of it, at the program's index in the leading axes."""
    return pl.BlockSpec((None,) * batch_axes + shape, lambda *program: program[:batch_axes] + (0,) * len(shape))


def widened(size: int) -> int:
    """The power of two, at least 16, in which a product computes a head; the rest is masked."""
    return max(16, pl.next_power_of_2(size))
