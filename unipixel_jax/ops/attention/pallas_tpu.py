"""Flash attention for TPUs: our own Mosaic (Pallas) kernels, forward and backward. Rows so short that no blocks are needed go to windows_tpu.py.

FlashAttention-2 (arXiv 2307.08691), with three choices of our own:

* Scores are kept transposed, [keys, queries]. The running maximum, the sum, the logsumexp and delta are then rows of [1, queries] that fill whole
  lanes, reductions run down the sublanes, and a head size of 56 or 72 wastes no lanes in the accumulators of the output and of dq.
* A grid walks a list of live blocks, not the rectangle of all of them. The list is made outside from the causal rule and from the least and greatest
  segment of each block. What is live comes first; steps that are left over repeat the last block, so they neither compute nor copy anything.
* On a CPU the same kernels run in Pallas's interpreter. `jax.lax.platform_dependent` picks when the program is lowered, so compiling for a TPU from a
  CPU host and running on the CPU both work and nobody passes a flag.

B batch, T query length, S key length, K key heads, G queries per key head, H head size, V value size, P blocks in the list; tq and tk block lengths.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from unipixel_jax.core.platform import device_kind
from unipixel_jax.ops.attention import windows_tpu
from unipixel_jax.ops.attention.dropout import WeightDropout
from unipixel_jax.ops.attention.flash import LOG2E, Given, Job, Kernel, flash, job_of
from unipixel_jax.ops.attention.mask import AttnMask
from unipixel_jax.ops.attention.pallas_tpu_kernels import FIRST, LAST, LIVE, MASKED, Step, attention_dkv, attention_dq, attention_dv, attention_forward
from unipixel_jax.ops.attention.spec import Spec

NOBODY = np.iinfo(np.int32).min
"""The segment of a hidden key; no query has it."""

LARGEST = {"TPU v4": 1024, "TPU v5 lite": 1024, "TPU v5": 1024, "TPU v6 lite": 1024, "TPU7x": 1024}
DEFAULT_LARGEST = 512
"""Tokens per block of bfloat16, by device kind; half of that for float32. The compiler schedules 1024 x 1024 in 10 to 15 per cent fewer bundles a score
than 512 x 512 (v5e), and there are a quarter of the steps; untimed on hardware."""

VMEM_BUDGET = 15 * 2**20
"""Of the 16 MiB that a kernel gets where the program does not ask for more."""

FEWEST = 256
"""Keys of a block below which the matrix units would be fed too slowly for all queries to be one block."""

LONGEST_LIST, MOST_BLOCKS = 2**17, 2**13 - 1
"""Entries of four bytes in the list of blocks, which has to fit 1 MiB of scalar memory; and blocks along one side, by the bits of an entry."""


@dataclass(frozen=True)
class BlockSizes:
    """Tokens per block: queries and keys of the forward kernel, then of the two backward kernels."""

    q: int
    kv: int
    q_back: int
    kv_back: int


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: AttnMask, scale: float, dropout: WeightDropout | None = None) -> tuple[jax.Array, jax.Array]:
    """Compute what ``xla.attend`` computes by a kernel, whose gradient is a kernel too.

    Args:
        q: [B, K, G, T, H], float32 or bfloat16. Products of float32 are full float32, those of bfloat16 are summed in float32.
        k: [B, K, S, H], q's dtype.
        v: [B, K, S, V], q's dtype.
        mask: who sees whom.
        scale: of the scores.
        dropout: of the weights; the log-sum-exp knows nothing of it.

    Returns:
        [B, K, G, T, V] in q's dtype, zero in rows with no visible key; the log of each row's sum of exponentials [B, K, G, T] float32, ``FLOOR`` there.
    """
    if windows_tpu.why_not(Spec.of(q, k, v, mask, dropout, "tpu")) is None:
        return windows_tpu.attend(q, k, v, mask, scale)
    b, kh, g, t, h = q.shape
    if mask.segments is not None:
        mask = AttnMask(mask.causal, mask.segments[0], jnp.where(mask.segments[1] == 0, NOBODY, mask.segments[1]))
    if mask.causal:
        out, lse = flash(_launch, q, k, v, mask, dropout, float(scale))
        return out, lse
    # where the place of a query does not matter, the heads of a group are more queries of one head, and its keys are read once for all of them
    if mask.segments is not None:
        mask = AttnMask(False, jnp.tile(mask.segments[0], (1, g)), mask.segments[1])
    out, lse = flash(_launch, q.reshape(b, kh, 1, g * t, h), k, v, mask, dropout, float(scale))
    return out.reshape(b, kh, g, t, v.shape[-1]), lse.reshape(b, kh, g, t)


def why_not(spec: Spec) -> str | None:
    """Why these kernels cannot do `spec`, or None if they can."""
    if spec.platform not in ("tpu", "cpu"):
        return f"pallas_tpu runs on tpu, and interpreted on cpu, not on {spec.platform}"
    if device_kind() in ("TPU v2", "TPU v3"):
        return f"pallas_tpu needs a TPU v4 or later, which multiplies bfloat16 blocks, not a {device_kind()}"
    if jnp.dtype(spec.dtype) not in (jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16)):
        return f"pallas_tpu takes float32 or bfloat16, got {jnp.dtype(spec.dtype)}"
    if max(spec.head_size, spec.value_size) > 256:
        return f"pallas_tpu takes head sizes up to 256, got head size {spec.head_size} and value size {spec.value_size}"
    blocks = block_sizes(device_kind(), max(spec.head_size, spec.value_size), spec.queries, spec.keys, spec.dtype)
    rows, columns = pl.cdiv(spec.queries, blocks.q), pl.cdiv(spec.keys, blocks.kv)
    if rows * columns > LONGEST_LIST or max(rows, columns) > MOST_BLOCKS:
        return f"pallas_tpu's list holds {LONGEST_LIST} blocks, and {spec.queries} queries x {spec.keys} keys need {rows} x {columns}"
    return None


def block_sizes(device_kind: str, head_size: int, queries: int, keys: int, dtype: Any) -> BlockSizes:
    """Block lengths for a device (`jax.Device.device_kind`) and a shape; `head_size` is the larger of H and V.

    From the largest that the table allows, halved until the kernels fit VMEM, evened out over the length. Where all queries fit VMEM beside blocks of no fewer
    than ``FEWEST`` keys, they are one block: keys and values are then read once, and not again for each block of queries. SAM 2's 2,304 queries are such.
    """
    largest = LARGEST.get(device_kind, DEFAULT_LARGEST) // (jnp.dtype(dtype).itemsize // 2)
    while vmem(largest, largest, head_size, dtype) > VMEM_BUDGET:
        largest //= 2
    q, kv = _even(queries, largest), _even(keys, largest)
    whole = _even(queries, queries)
    if whole > q:
        shorter = (_even(keys, length) for length in (largest, largest // 2, largest // 4) if length >= FEWEST)
        fitting = next((length for length in shorter if vmem(whole, length, head_size, dtype) <= VMEM_BUDGET), None)
        q, kv = (q, kv) if fitting is None else (whole, fitting)
    return BlockSizes(q, kv, q, kv)


def vmem(tq: int, tk: int, head_size: int, dtype: Any) -> int:
    """Bytes of VMEM that dk and dv, the largest of the kernels, need at most.

    Two buffers for each block that is copied, the float32 sums, and one block of scores in float32 and in the dtype of the products.
    """
    itemsize = jnp.dtype(dtype).itemsize
    width = pl.cdiv(head_size, 128) * 128
    return 2 * itemsize * width * (2 * tq + 4 * tk) + 4 * width * 2 * tk + tq * tk * (4 + itemsize)


def _even(length: int, largest: int) -> int:
    """The block no longer than `largest` that pads `length` least, in whole lanes (128); short lengths are one block of whole sublanes (16)."""
    step = 128 if length > 128 else 16
    blocks = -(-length // largest)
    return -(-length // (step * blocks)) * step


# ---------------------------------------------------------------------------------------------------------------------------- the list of blocks


def _block_list(q_segments: jax.Array | None, kv_segments: jax.Array | None, job: Job) -> jax.Array:
    """The steps of a grid, [1 or B, P] int32: the block to stay at, the block to visit and the flags, packed into 14, 13 and 4 bits.

    Staying at a block of queries while visiting keys gives the output and dq; the other way round (`job.by_keys`) gives dk and dv.

    Args:
        q_segments: [B, padded T], or None.
        kv_segments: [B, padded S], with NOBODY for hidden keys.
        job: sizes and rules.
    """
    tq, tk, s, causal = job.tq, job.tk, job.sizes["s"], job.causal
    i, j = np.arange(job.query_blocks)[:, None], np.arange(job.key_blocks)[None]
    live = (j * tk <= i * tq + tq - 1) if causal else np.full((i.size, j.size), True)
    clear = ((j + 1) * tk <= s) & (((j + 1) * tk - 1 <= i * tq) if causal else (i >= 0))
    live, clear = (live.T, clear.T) if job.by_keys else (live, clear)
    steps = np.arange(np.maximum(live.sum(1), 1).sum())[None]
    seen, masked = jnp.asarray(live)[None], jnp.asarray(~clear)[None]
    if q_segments is not None and kv_segments is not None:
        q_bounds, kv_bounds = _bounds(q_segments, tq), _bounds(kv_segments, tk)
        stay, visit = (kv_bounds, q_bounds) if job.by_keys else (q_bounds, kv_bounds)
        low, high, mixed = (a[:, :, None] for a in stay)
        low2, high2, mixed2 = (a[:, None] for a in visit)
        seen = seen & (low <= high2) & (low2 <= high)
        masked = masked | mixed | mixed2
    # a row of blocks with nothing live keeps one, whose step writes the zeros
    keep = seen | (~jnp.any(seen, axis=2, keepdims=True) & (np.arange(live.shape[1]) == 0)[None, None])
    seen, masked, keep = (jnp.broadcast_to(a, keep.shape).reshape(keep.shape[0], -1) for a in (seen, masked, keep))
    count = jnp.sum(keep, axis=1, keepdims=True)
    order = jnp.take_along_axis(jnp.argsort(~keep, axis=1, stable=True), jnp.minimum(steps, count - 1), axis=1)
    at, to = order // live.shape[1], order % live.shape[1]
    turn, edge = at[:, 1:] != at[:, :-1], jnp.ones_like(at[:, :1], bool)
    live_now, masked_now = (jnp.take_along_axis(a, order, axis=1) for a in (seen, masked))
    does = {LIVE: live_now & (steps < count), MASKED: masked_now, FIRST: jnp.concatenate([edge, turn], 1), LAST: jnp.concatenate([turn, edge], 1)}
    flags = sum(jnp.where(a, flag, 0) for flag, a in does.items())
    return ((at << 17) | (to << 4) | flags).astype(jnp.int32)


def _bounds(segments: jax.Array, block: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return for each block the least and the greatest segment that is not hidden, and whether it holds several or hidden keys; all [B, blocks]."""
    parts = segments.reshape(segments.shape[0], -1, block)
    high = jnp.max(parts, axis=2)
    return jnp.min(jnp.where(parts == NOBODY, np.iinfo(np.int32).max, parts), axis=2), high, jnp.min(parts, axis=2) != high


# ------------------------------------------------------------------------------------------------------------------------- one call of one kernel


def _launch(kernel: Kernel, given: Given, rows: tuple[jax.Array, ...] = ()) -> tuple[jax.Array, ...]:
    """One of the four kernels, see ``flash.Launch``."""
    q, k, v, mask, dropout, _ = given
    blocks = block_sizes(device_kind(), max(q.shape[-1], v.shape[-1]), q.shape[3], k.shape[2], q.dtype)
    tq, tk = (blocks.q, blocks.kv) if kernel == "forward" else (blocks.q_back, blocks.kv_back)
    job = job_of(kernel, given, tq, tk)
    seeds = None if dropout is None else dropout.seeds[:, :, None, None]
    call = partial(_call, job=job, segments=mask.segments, seeds=seeds)
    if kernel == "forward":
        inputs = [("bkgth", q), ("bksh", k), ("bkvs", v.swapaxes(2, 3))]
        out, lse = call(attention_forward, inputs=inputs, outputs=[("bkgtv", q.dtype), ("bkg1t", jnp.float32)], scratch=["1t", "1t", "vt"])
        return out, lse[:, :, :, 0]
    d_out, lse, delta = rows
    of_rows = [("bkgtv", d_out), ("bkg1t", (lse * LOG2E)[:, :, :, None]), ("bkg1t", delta[:, :, :, None])]
    if kernel == "dq":
        inputs = [("bkgth", q), ("bksh", k), ("bkhs", k.swapaxes(2, 3)), ("bksv", v), *of_rows]
        return call(attention_dq, inputs=inputs, outputs=[("bkgth", q.dtype)], scratch=["ht"])
    if kernel == "dv":
        inputs = [("bkgth", q), ("bksh", k), *of_rows[:2]]
        return call(attention_dv, inputs=inputs, outputs=[("bksv", v.dtype)], scratch=["sv"])
    inputs = [("bkgth", q), ("bksh", k), ("bksv", v), *of_rows]
    return call(attention_dkv, inputs=inputs, outputs=[("bksh", k.dtype), ("bksv", v.dtype)], scratch=["sh", "sv"])


def _shape(job: Job, layout: str) -> tuple[int, ...]:
    """The padded shape of a layout such as "bkgth"."""
    padded = {**job.sizes, "t": job.query_blocks * job.tq, "s": job.key_blocks * job.tk}
    return tuple(padded[c] for c in layout)


def _block(job: Job, layout: str) -> tuple[int | None, ...]:
    """The part of a layout that one step sees: one batch row, one head, one block of length, all of the rest."""
    return tuple({"b": None, "k": None, "g": None, "t": job.tq, "s": job.tk}.get(c, job.sizes[c]) for c in layout)


def _padded(job: Job, layout: str, a: jax.Array, **how: Any) -> jax.Array:
    """An array of that layout, its lengths padded as `jnp.pad` is told."""
    return jnp.pad(a, [(0, to - size) for to, size in zip(_shape(job, layout), a.shape, strict=True)], **how)


def _call(
    kernel: Callable[..., None],
    job: Job,
    segments: tuple[jax.Array, jax.Array] | None,
    seeds: jax.Array | None,
    inputs: Sequence[tuple[str, jax.Array]],
    outputs: Sequence[tuple[str, Any]],
    scratch: Sequence[str],
) -> tuple[jax.Array, ...]:
    """Runs a kernel over the list of blocks.

    Args:
        kernel: its body, given the job, the step, then references to segments and seeds (or None), inputs, outputs, scratch.
        job: sizes.
        segments: q_segments [B, T] and kv_segments [B, S], or None.
        seeds: of the dropout [B, K, 1, 1] int32, or None.
        inputs: a layout and an array of unpadded length, each.
        outputs: a layout and a dtype, each.
        scratch: layouts, all float32.

    Returns:
        The outputs.
    """
    inputs = [(layout, _padded(job, layout, a)) for layout, a in inputs]
    if seeds is not None:
        inputs = [("bk11", seeds), *inputs]
    if segments is not None:
        q_segments = _padded(job, "bt", segments[0], mode="edge")
        kv_segments = _padded(job, "bs", segments[1], constant_values=NOBODY)
        inputs = [("b1t", q_segments[:, None]), ("b1s", kv_segments[:, None]), *inputs]
        table = _block_list(q_segments, kv_segments, job)
    else:
        table = _block_list(None, None, job)
    rows, steps = table.shape
    heads = job.sizes["g"]

    def entry(b: Any, p: Any, table: Any) -> tuple[Any, Any, Any]:
        """The block of queries, the block of keys, the flags."""
        packed = table[(b * steps if rows > 1 else 0) + p]
        stay, visit, flags = packed >> 17, (packed >> 4) & 0x1FFF, packed & 15
        return (visit, stay, flags) if job.by_keys else (stay, visit, flags)

    def spec(layout: str) -> pl.BlockSpec:
        def place(b: Any, k: Any, x: Any, y: Any, table: Any) -> tuple[Any, ...]:
            g, p = (y, x) if job.by_keys else (x, y)
            i, j, flags = entry(b, p, table)
            if job.by_keys:  # a step that is left over must not go through the heads
                g = jnp.where(flags & LIVE != 0, g, heads - 1)
            return tuple({"b": b, "k": k, "g": g, "t": i, "s": j}.get(c, 0) for c in layout)

        return pl.BlockSpec(_block(job, layout), place)

    def body(table: Any, *refs: Any) -> None:
        i, j, flags = entry(pl.program_id(0), pl.program_id(2 if job.by_keys else 3), table)
        head = pl.program_id(3 if job.by_keys else 2)
        if job.by_keys:
            flags = flags & ~jnp.where(head == 0, 0, FIRST) & ~jnp.where(head == heads - 1, 0, LAST)
        given = iter(refs)
        optional = [next(given) if there else None for there in (segments is not None, segments is not None, seeds is not None)]
        kernel(job, Step(flags, head, i, j), *optional, *given)

    batch = job.sizes["b"] * job.sizes["k"] * heads
    visited = "t" if job.by_keys else "s"

    def traffic(layout: str, dtype: Any) -> int:
        once = math.prod(_shape(job, layout))
        return (batch * steps * math.prod(n or 1 for n in _block(job, layout)) if visited in layout else once) * jnp.dtype(dtype).itemsize

    cost = pl.CostEstimate(
        flops=2 * batch * steps * job.tq * job.tk * job.products,
        transcendentals=batch * steps * job.tq * job.tk,
        bytes_accessed=sum(traffic(layout, a.dtype) for layout, a in inputs) + sum(traffic(layout, dtype) for layout, dtype in outputs),
    )
    manual = jax.typeof(inputs[-1][1]).manual_axis_type
    grid = (job.sizes["b"], job.sizes["k"], *((steps, heads) if job.by_keys else (heads, steps)))

    def run(*args: jax.Array, interpret: bool) -> Sequence[jax.Array]:
        return pl.pallas_call(
            body,
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=1,
                grid=grid,
                in_specs=[spec(layout) for layout, _ in inputs],
                out_specs=[spec(layout) for layout, _ in outputs],
                scratch_shapes=[pltpu.VMEM(tuple(n for n in _block(job, layout) if n), jnp.float32) for layout in scratch],
            ),
            out_shape=[jax.ShapeDtypeStruct(_shape(job, layout), dtype, manual_axis_type=manual) for layout, dtype in outputs],
            compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary" if job.by_keys else "parallel", "arbitrary")),
            cost_estimate=cost,
            interpret=interpret,
            name=kernel.__name__,
        )(*args)

    arrays = [table.reshape(-1), *(a for _, a in inputs)]
    results = jax.lax.platform_dependent(*arrays, tpu=partial(run, interpret=False), cpu=partial(run, interpret=True))
    return tuple(a[tuple(slice(job.sizes[c]) for c in layout)] for (layout, _), a in zip(outputs, results, strict=True))
