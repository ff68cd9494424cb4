"""Flash attention for NVIDIA GPUs: our own Pallas kernels that lower to Triton, forward and backward (FlashAttention-2, arXiv 2307.08691).

Blocks that the mask empties are not visited. Nothing is padded or copied on the way in: loads and stores mask what lies outside of an array. The
gradient has one kernel for dq and one for dk and dv and needs no atomics, so it repeats bit by bit. On a CPU the same kernels run in Pallas's
interpreter. A single query (decoding) is right but slow: one program walks through all its keys.

B batch, K key heads, G query heads per key head, T query length, S key length, H head size, V value size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from unipixel_jax.ops.attention.dropout import WeightDropout, thinned
from unipixel_jax.ops.attention.mask import AttnMask
from unipixel_jax.ops.attention.spec import Spec
from unipixel_jax.ops.attention.xla import FLOOR, HIDDEN
from unipixel_jax.ops.platform import device_kind

LOG2_E = math.log2(math.e)
"""Inside of the kernels scores are in units of log 2, because exp2 is what the hardware has."""

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


class Blocks(NamedTuple):
    """How a kernel is cut: queries and keys per step, warps per program, loads in flight."""

    queries: int
    keys: int
    warps: int
    stages: int


class BlockSizes(NamedTuple):
    """The blocks of the three kernels."""

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
    key = jnp.dtype(dtype).itemsize, max(64, _widened(head_size), _widened(value_size))
    sizes = _BLOCKS[key]
    if key in _HOPPER and any(name in device_kind for name in ("H100", "H200")):
        sizes = BlockSizes(*_HOPPER[key], sizes.dkv)
    return BlockSizes(*(Blocks(min(b.queries, _widened(queries)), min(b.keys, _widened(keys)), b.warps, b.stages) for b in sizes))


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: AttnMask, scale: float, dropout: WeightDropout | None = None) -> tuple[jax.Array, jax.Array]:
    """As xla.py's, with its own gradient.

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
    return _attend(q, k, v, mask, dropout, float(scale))


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: AttnMask, dropout: WeightDropout | None, scale: float) -> tuple[jax.Array, jax.Array]:
    return _launch(_forward_kernel, q, k, v, mask, dropout, scale)


def _attend_fwd(q: jax.Array, k: jax.Array, v: jax.Array, mask: AttnMask, dropout: WeightDropout | None, scale: float) -> tuple[Any, tuple[Any, ...]]:
    out, lse = _launch(_forward_kernel, q, k, v, mask, dropout, scale)
    return (out, lse), (q, k, v, mask, dropout, out, lse)


def _attend_bwd(scale: float, saved: tuple[Any, ...], d_results: tuple[jax.Array, jax.Array]) -> tuple[Any, ...]:
    (q, k, v, mask, dropout, out, lse), (d_out, d_lse) = saved, d_results
    delta = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=-1) - d_lse
    rows = d_out, lse, delta
    return *_launch(_dq_kernel, q, k, v, mask, dropout, scale, *rows), *_launch(_dkv_kernel, q, k, v, mask, dropout, scale, *rows), None, None


_attend.defvjp(_attend_fwd, _attend_bwd)


class Segments(NamedTuple):
    """Segment ids, padded to whole blocks, and for each block of one side the blocks of the other that are worth a visit; arrays, specs or refs.

    queries, keys: [B, T] and [B, S].
    order: [B, blocks, blocks of the other side], those worth a visit first.
    count: [B, blocks], how many they are.
    """

    queries: Any
    keys: Any
    order: Any
    count: Any


@dataclass(frozen=True)
class Plan:
    """What a kernel is compiled for."""

    queries: int
    keys: int
    head_size: int
    value_size: int
    causal: bool
    scale: float
    rate: float
    block: Blocks

    @property
    def query_blocks(self) -> int:
        """Blocks that hold all queries."""
        return pl.cdiv(self.queries, self.block.queries)

    @property
    def key_blocks(self) -> int:
        """Blocks that hold all keys."""
        return pl.cdiv(self.keys, self.block.keys)

    @property
    def pairs(self) -> int:
        """Queries times the keys that they see; what segments hide is not known ahead of time and counts as seen."""
        if not self.causal:
            return self.queries * self.keys
        reach = min(self.queries, self.keys)
        return reach * (reach + 1) // 2 + (self.queries - reach) * self.keys

    def segments(self, mask: AttnMask, by_key: bool) -> Segments | None:
        """The tables of a kernel whose programs own a block of queries, or of keys."""
        if mask.segments is None:
            return None
        t, s = self.query_blocks * self.block.queries, self.key_blocks * self.block.keys
        mask = mask.padded(mask.segments[0].shape[0], self.queries, self.keys, t - self.queries, s - self.keys)
        live = mask.live_blocks(self.block.queries, self.block.keys, t, s)
        assert mask.segments is not None and live is not None
        live = live.swapaxes(1, 2) if by_key else live
        return Segments(*mask.segments, jnp.argsort(~live, axis=-1, stable=True).astype(jnp.int32), jnp.sum(live, axis=-1, dtype=jnp.int32))


def _launch(
    kernel: Callable[..., None],
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: AttnMask,
    dropout: WeightDropout | None,
    scale: float,
    *rows: jax.Array,
) -> Any:
    """Compiled where the program is lowered for CUDA, interpreted where it is lowered for a CPU. ``rows``: d_out, lse, delta of the backward kernels."""
    (b, kh, g, t, h), (s, w) = q.shape, v.shape[2:]
    name = kernel.__name__.strip("_").removesuffix("_kernel")
    block = getattr(block_sizes(device_kind(), h, w, t, s, q.dtype), name)
    plan = Plan(t, s, h, w, mask.causal, scale, 0.0 if dropout is None else dropout.rate, block)
    seeds = None if dropout is None else dropout.seeds[:, :, None]
    segments = plan.segments(mask, by_key=name == "dkv")

    def of_queries(*width: int) -> pl.BlockSpec:
        return _share(2, g, plan.query_blocks * block.queries, *map(_widened, width))

    def of_keys(width: int) -> pl.BlockSpec:
        return _share(2, plan.key_blocks * block.keys, _widened(width))

    outputs, products = {
        "forward": (((of_queries(w), (b, kh, g, t, w), q.dtype), (of_queries(), (b, kh, g, t), jnp.float32)), h + w),
        "dq": (((of_queries(h), q.shape, q.dtype),), 2 * h + w),
        "dkv": (((of_keys(h), k.shape, k.dtype), (of_keys(w), v.shape, v.dtype)), 2 * h + 2 * w),
    }[name]
    varying = jax.typeof(q).manual_axis_type
    out_shape = tuple(jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=varying) for _, shape, dtype in outputs)
    args = (q, k, v, segments, seeds, *rows)
    scores = b * kh * g * plan.pairs
    moved = sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves((args, out_shape)))

    def call(interpret: bool) -> Callable[..., Any]:
        return pl.pallas_call(
            partial(kernel, plan=plan),
            grid=(b, kh, plan.key_blocks) if name == "dkv" else (b, kh, g, plan.query_blocks),
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
            cost_estimate=pl.CostEstimate(flops=2 * scores * products, transcendentals=scores, bytes_accessed=moved),
            interpret=interpret,
            name=f"attention_{name}",
        )

    return lax.platform_dependent(*args, cuda=call(False), cpu=call(True))


def _share(batch_axes: int, *shape: int) -> pl.BlockSpec:
    """What a program sees of an array: all of it, at the program's place in the leading axes."""
    return pl.BlockSpec((None,) * batch_axes + shape, lambda *program: program[:batch_axes] + (0,) * len(shape))


def _widened(size: int) -> int:
    """The power of two, at least 16, in which a product computes a head; the rest is masked."""
    return max(16, pl.next_power_of_2(size))


def _forward_kernel(q_ref: Any, k_ref: Any, v_ref: Any, segments: Segments | None, seed: Any, out_ref: Any, lse_ref: Any, *, plan: Plan) -> None:
    """A program has one block of queries of one head."""
    g, i = pl.program_id(2), pl.program_id(3)
    rows, here, inside = _block(i, plan.block.queries, plan.queries)
    q = _load(q_ref.at[g, here], inside, plan.head_size)

    def visit(masked: bool, step: Any, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        best, total, out = state
        cols, there, exists = _block(segments.order[i, step] if segments else step, plan.block.keys, plan.keys)
        scores = _dot(q, _load(k_ref.at[there], exists, plan.head_size).T) * (plan.scale * LOG2_E)
        if masked:
            scores = _hide(scores, plan, segments, rows[:, None], here, cols[None], there)
        new_best = jnp.maximum(best, jnp.max(scores, axis=1))
        keep = jnp.exp2(best - new_best)
        weights = jnp.exp2(scores - new_best[:, None])
        v = _load(v_ref.at[there], exists, plan.value_size)
        new_total = total * keep + jnp.sum(weights, axis=1)
        weights = _thinned(weights, plan, seed, g, rows[:, None], cols[None])
        return new_best, new_total, out * keep[:, None] + _dot(weights.astype(v.dtype), v)

    size = plan.block.queries
    start = jnp.full((size,), FLOOR, jnp.float32), jnp.zeros((size,), jnp.float32), jnp.zeros((size, out_ref.shape[-1]), jnp.float32)
    best, total, out = _walk(_key_runs(plan, i, segments), visit, start)
    blind = total == 0
    total = jnp.where(blind, 1.0, total)
    _store(out_ref.at[g, here], out / total[:, None], inside, plan.value_size)
    _store(lse_ref.at[g, here], jnp.where(blind, FLOOR, (best + jnp.log2(total)) / LOG2_E), inside)


def _dq_kernel(
    q_ref: Any, k_ref: Any, v_ref: Any, segments: Segments | None, seed: Any, d_out_ref: Any, lse_ref: Any, delta_ref: Any, d_q_ref: Any, *, plan: Plan
) -> None:
    """A program has one block of queries of one head."""
    g, i = pl.program_id(2), pl.program_id(3)
    rows, here, inside = _block(i, plan.block.queries, plan.queries)
    q, d_out = _load(q_ref.at[g, here], inside, plan.head_size), _load(d_out_ref.at[g, here], inside, plan.value_size)
    lse, delta = _load(lse_ref.at[g, here], inside) * LOG2_E, _load(delta_ref.at[g, here], inside)

    def visit(masked: bool, step: Any, d_q: jax.Array) -> jax.Array:
        cols, there, exists = _block(segments.order[i, step] if segments else step, plan.block.keys, plan.keys)
        k, v = _load(k_ref.at[there], exists, plan.head_size), _load(v_ref.at[there], exists, plan.value_size)
        scores = _dot(q, k.T) * (plan.scale * LOG2_E)
        if masked:
            scores = _hide(scores, plan, segments, rows[:, None], here, cols[None], there)
        d_weights = _thinned(_dot(d_out, v.T), plan, seed, g, rows[:, None], cols[None])
        d_scores = jnp.exp2(scores - lse[:, None]) * (d_weights - delta[:, None])
        return d_q + _dot(d_scores.astype(k.dtype), k)

    d_q = _walk(_key_runs(plan, i, segments), visit, jnp.zeros(q.shape, jnp.float32))
    _store(d_q_ref.at[g, here], d_q * plan.scale, inside, plan.head_size)


def _dkv_kernel(
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    segments: Segments | None,
    seed: Any,
    d_out_ref: Any,
    lse_ref: Any,
    delta_ref: Any,
    d_k_ref: Any,
    d_v_ref: Any,
    *,
    plan: Plan,
) -> None:
    """A program has one block of keys, for all the query heads that share them. Scores lie as [keys, queries], so no weights need transposing."""
    j = pl.program_id(2)
    cols, here, exists = _block(j, plan.block.keys, plan.keys)
    k, v = _load(k_ref.at[here], exists, plan.head_size), _load(v_ref.at[here], exists, plan.value_size)

    def visit(g: Any, masked: bool, step: Any, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        d_k, d_v = state
        rows, there, inside = _block(segments.order[j, step] if segments else step, plan.block.queries, plan.queries)
        q, d_out = _load(q_ref.at[g, there], inside, plan.head_size), _load(d_out_ref.at[g, there], inside, plan.value_size)
        lse, delta = _load(lse_ref.at[g, there], inside) * LOG2_E, _load(delta_ref.at[g, there], inside)
        scores = _dot(k, q.T) * (plan.scale * LOG2_E)
        if masked:
            scores = _hide(scores, plan, segments, rows[None], there, cols[:, None], here)
        weights = jnp.exp2(scores - lse[None])
        d_scores = weights * (_thinned(_dot(v, d_out.T), plan, seed, g, rows[None], cols[:, None]) - delta[None])
        weights = _thinned(weights, plan, seed, g, rows[None], cols[:, None])
        return d_k + _dot(d_scores.astype(q.dtype), q), d_v + _dot(weights.astype(v.dtype), d_out)

    runs = _query_runs(plan, j, segments)
    start = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    d_k, d_v = lax.fori_loop(0, q_ref.shape[0], lambda g, state: _walk(runs, partial(visit, g), state), start)
    _store(d_k_ref.at[here], d_k * plan.scale, exists, plan.head_size)
    _store(d_v_ref.at[here], d_v, exists, plan.value_size)


def _block(index: Any, size: int, length: int) -> tuple[jax.Array, Any, jax.Array]:
    """The positions in a block, the slice that holds them, and whether each lies within the array."""
    at = index * size + jnp.arange(size)
    return at, pl.ds(index * size, size), at < length


def _load(ref: Any, inside: jax.Array, width: int | None = None) -> jax.Array:
    """[rows] or [rows, widened width], zero outside of the array."""
    return plgpu.load(ref, mask=_mask(ref, inside, width), other=0)


def _store(ref: Any, value: jax.Array, inside: jax.Array, width: int | None = None) -> None:
    plgpu.store(ref, value.astype(ref.dtype), mask=_mask(ref, inside, width))


def _mask(ref: Any, inside: jax.Array, width: int | None) -> jax.Array:
    return inside if width is None else inside[:, None] & (jnp.arange(ref.shape[-1]) < width)[None]


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """A product summed in float32. HIGHEST keeps float32 from being cut to TF32 and changes nothing for bfloat16."""
    return jnp.dot(a, b, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32)


def _hide(scores: jax.Array, plan: Plan, segments: Segments | None, rows: jax.Array, row_slice: Any, cols: jax.Array, col_slice: Any) -> jax.Array:
    """Scores of pairs that do not see each other become HIDDEN. One of rows and cols is [n, 1], the other [1, n]; so are their segments."""
    seen = cols < plan.keys
    if plan.causal:
        seen &= rows >= cols
    if segments:
        q_ids, kv_ids = segments.queries[row_slice].reshape(rows.shape), segments.keys[col_slice].reshape(cols.shape)
        seen &= (q_ids == kv_ids) & (kv_ids != 0)
    return jnp.where(seen, scores, HIDDEN)


def _thinned(weights: jax.Array, plan: Plan, seed: Any, g: Any, rows: jax.Array, cols: jax.Array) -> jax.Array:
    """Weights after dropout, if there is any; ``rows`` and ``cols`` as in ``_hide``."""
    return weights if seed is None else thinned(weights, plan.rate, seed[...][:, None], g * plan.queries + rows, cols)


def _key_runs(plan: Plan, i: Any, segments: Segments | None) -> tuple[tuple[Any, Any, bool], ...]:
    """Steps through the keys for a block of queries: (first, end, whether a mask is needed). A step is a block, or a place in ``segments.order``."""
    if segments:
        return ((0, segments.count[i], True),)
    size, whole = plan.block.keys, plan.keys // plan.block.keys
    if not plan.causal:
        return ((0, whole, False), (whole, plan.key_blocks, True))
    row = i * plan.block.queries
    clear = jnp.minimum(lax.div(row + 1, size), whole)
    return ((0, clear, False), (clear, jnp.minimum(lax.div(row + plan.block.queries + size - 1, size), plan.key_blocks), True))


def _query_runs(plan: Plan, j: Any, segments: Segments | None) -> tuple[tuple[Any, Any, bool], ...]:
    """Steps through the queries for a block of keys. Keys outside of the array need no mask: what they get is not stored."""
    if segments:
        return ((0, segments.count[j], True),)
    if not plan.causal:
        return ((0, plan.query_blocks, False),)
    size, col = plan.block.queries, j * plan.block.keys
    first = jnp.minimum(lax.div(col, size), plan.query_blocks)
    clear = jnp.minimum(lax.div(col + plan.block.keys + size - 2, size), plan.query_blocks)
    return ((first, clear, True), (clear, plan.query_blocks, False))


def _walk(runs: tuple[tuple[Any, Any, bool], ...], visit: Callable[..., Any], state: Any) -> Any:
    for first, end, masked in runs:
        state = lax.fori_loop(first, end, partial(visit, masked), state)
    return state
