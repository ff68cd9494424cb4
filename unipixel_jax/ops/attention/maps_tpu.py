"""Attention within the windows of a map on TPUs, from the fused projection to the map of results; see maps.py.

A step of the grid takes some rows and columns of the windows of one image. It cuts them out of that part of the map in VMEM, attends within each, and puts the
results to their places. Lines of pixels are moved one at a time, because a window's side of 14 fills no whole tiles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from unipixel_jax.core.platform import device_kind
from unipixel_jax.ops.attention.windows import Heads
from unipixel_jax.ops.attention.windows_tpu_kernels import backward, each, forward

VMEM = {"TPU v4": 12 * 2**20, "TPU v5 lite": 96 * 2**20, "TPU v6 lite": 96 * 2**20}
DEFAULT_VMEM = 48 * 2**20
"""Bytes of VMEM that a kernel may take, by device kind: three quarters of what the chip has, which is 64 MiB on most."""

AT_WORK = 8 * 2**20
"""Bytes of that for the window at work, its scores and gradients."""

STEP = 2**20
"""Bytes of the fused projection that a step takes, about."""


@dataclass(frozen=True)
class Part:
    """A step's part of a map.

    Attributes:
        size: height and width of the map, in pixels.
        side: of a window, in pixels.
        rows, columns: of the part, in windows.
    """

    size: tuple[int, int]
    side: int
    rows: int
    columns: int

    @property
    def block(self) -> tuple[int, int]:
        """Height and width of the part in pixels."""
        return self.rows * self.side, min(self.columns * self.side, self.size[1])

    @property
    def windows(self) -> int:
        """The number of windows."""
        return self.rows * self.columns

    @property
    def pixels(self) -> int:
        """The number of pixels of a window."""
        return self.side * self.side

    @property
    def halved(self) -> Part:
        """The same part of the map with half the resolution."""
        return Part((self.size[0] // 2, self.size[1] // 2), self.side // 2, self.rows, self.columns)

    def lines(self, row: Any) -> Iterator[tuple[Any, slice, Any, slice, int]]:
        """Each line of pixels of each window in a row of windows: the window, the line's pixels in it, where they are in the part, and how many of them lie
        beside the map.
        """
        for column in range(self.columns):
            there = min(self.side, self.block[1] - column * self.side)
            across = slice(column * self.side, column * self.side + there)
            for i in range(self.side):
                yield row * self.columns + column, slice(i * self.side, i * self.side + there), row * self.side + i, across, self.side - there

    def cut(self, source: Any, windows: Any, fill: jax.Array) -> None:
        """Copy a block [rows, columns, C] into windows [n, side * side, C], with ``fill`` [1, C] outside of the map."""
        left = self.size[0] - pl.program_id(1) * self.block[0]

        @pl.loop(0, self.rows)
        def _(row: Any) -> None:
            for window, pixels, line, across, beside in self.lines(row):
                found = source[line, across]
                if self.size[0] % self.side:
                    found = jnp.where(line < left, found, fill)
                windows[window, pixels] = found
                if beside:
                    windows[window, slice(pixels.stop, pixels.stop + beside)] = jnp.broadcast_to(fill, (beside, fill.shape[1]))

    def place(self, windows: Any, target: Any) -> None:
        """The inverse of ``cut``; what lies outside of the map is dropped."""

        @pl.loop(0, self.rows)
        def _(row: Any) -> None:
            for window, pixels, line, across, _ in self.lines(row):
                target[line, across] = windows[window, pixels]

    def outside(self) -> Callable[[Any], jax.Array]:
        """A function from a window to those of its pixels that lie outside of the map, [side * side, 1]."""
        top, left = pl.program_id(1) * self.rows, pl.program_id(2) * self.columns
        pixel = jax.lax.broadcasted_iota(jnp.int32, (self.pixels, 1), 0)
        line, place = pixel // self.side, pixel % self.side

        def of(window: Any) -> jax.Array:
            row, column = (top + window // self.columns) * self.side + line, (left + window % self.columns) * self.side + place
            return (row >= self.size[0]) | (column >= self.size[1])

        return of


def why_not(size: tuple[int, int], window: int, heads: Heads, pooled: bool, dtype: Any) -> str | None:
    """Why the kernels cannot do such a map, or None."""
    need, limit = _vmem(_part(size, window, heads, dtype), heads, pooled, dtype), VMEM.get(device_kind(), DEFAULT_VMEM) - AT_WORK
    return None if need <= limit else f"windows of {window} x {window} in a map of {size} need {need} bytes of VMEM, and {limit} are there"


def _part(size: tuple[int, int], window: int, heads: Heads, dtype: Any) -> Part:
    """As many columns as fill whole tiles, or all of them, and as many rows as make a step of ``STEP`` bytes."""
    high, wide = (pl.cdiv(length, window) for length in size)
    columns = next((n for n in range(1, wide) if size[1] % (n * window) == 0 and n * window % 32 == 0), wide)
    row = 3 * heads.number * heads.size * window * columns * window * jnp.dtype(dtype).itemsize
    return Part(size, window, max(n for n in range(1, high + 1) if high % n == 0 and (n == 1 or n * row <= STEP)), columns)


def _vmem(part: Part, heads: Heads, pooled: bool, dtype: Any) -> int:
    """Bytes of VMEM of the backward kernel: two buffers of each block, and the windows that are cut out of the inputs."""
    itemsize, features, result = jnp.dtype(dtype).itemsize, heads.number * heads.size, part.halved if pooled else part

    def size(n: int, lines: int, width: int) -> int:
        return n * pl.cdiv(lines * itemsize, 32) * 32 * pl.cdiv(width, 128) * 128

    blocks = 2 * size(*part.block, 3 * features) + (1 + 2 * pooled) * size(*result.block, features)
    return 2 * blocks + size(part.windows, part.pixels, 3 * features) + (1 + pooled) * size(part.windows, result.pixels, features)


def launch(heads: Heads, window: int, qkv: jax.Array, bias: jax.Array, pooled: jax.Array | None, *d_out: jax.Array) -> tuple[jax.Array | None, ...]:
    """One of the two kernels, see ``maps.Launch``."""
    images, *size, width = qkv.shape
    part = _part((size[0], size[1]), window, heads, qkv.dtype)
    result = part if pooled is None else part.halved
    out = jax.ShapeDtypeStruct((images, *result.size, width // 3), qkv.dtype)
    steps = images, *(pl.cdiv(length, block) for length, block in zip(part.size, part.block, strict=True))
    inputs = qkv, bias[None], pooled, *d_out
    outputs = (qkv, jax.ShapeDtypeStruct((*steps, 1, width), jnp.float32), pooled) if d_out else (out,)
    varying = jax.typeof(qkv).manual_axis_type

    def spec(a: Any) -> pl.BlockSpec | None:
        if a is None:
            return None
        if a.ndim == 2:
            return pl.BlockSpec(a.shape, lambda m, i, j: (0, 0))
        if a.ndim == 5:
            return pl.BlockSpec((None, None, None, 1, width), lambda m, i, j: (m, i, j, 0, 0))
        return pl.BlockSpec((None, *(part if a is qkv else result).block, a.shape[3]), lambda m, i, j: (m, i, j, 0))

    of_results = pltpu.VMEM((part.windows, result.pixels, width // 3), qkv.dtype)
    scratch = pltpu.VMEM((part.windows, part.pixels, width), qkv.dtype), of_results, None if pooled is None or not d_out else of_results
    scores = images * part.windows * math.prod(steps[1:]) * heads.number * part.pixels * result.pixels
    moved = sum(math.prod(a.shape) * a.dtype.itemsize for a in (*inputs, *outputs) if a is not None)

    def run(*args: jax.Array | None, interpret: bool) -> Any:
        return pl.pallas_call(
            partial(_map_backward if d_out else _map_forward, heads, part, result),
            grid=steps,
            in_specs=[spec(a) for a in inputs],
            out_specs=tuple(spec(a) for a in outputs),
            out_shape=tuple(a if a is None else jax.ShapeDtypeStruct(a.shape, a.dtype, manual_axis_type=varying) for a in outputs),
            scratch_shapes=scratch,
            compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",) * 3, vmem_limit_bytes=VMEM.get(device_kind(), DEFAULT_VMEM)),
            cost_estimate=pl.CostEstimate(flops=2 * scores * heads.size * (5 if d_out else 2), transcendentals=scores, bytes_accessed=moved),
            interpret=interpret,
            name="map_backward" if d_out else "map_forward",
        )(*args)

    found: tuple[jax.Array | None, ...] = jax.lax.platform_dependent(*inputs, tpu=partial(run, interpret=False), cpu=partial(run, interpret=True))
    return found


def _map_forward(heads: Heads, part: Part, result: Part, qkv: Any, bias: Any, pooled: Any, out: Any, windows: Any, results: Any, _: Any) -> None:
    features = heads.number * heads.size
    part.cut(qkv, windows, bias[...])
    if pooled is not None:
        result.cut(pooled, results, jnp.zeros((1, features), pooled.dtype))

    def attend(window: Any) -> None:
        q, k, v = jnp.split(windows[window], 3, axis=1)
        results[window] = forward(heads, None, q if pooled is None else results[window], k, v)

    each(part.windows, heads, attend)
    result.place(results, out)


def _map_backward(
    heads: Heads, part: Part, result: Part, qkv: Any, bias: Any, pooled: Any, d_out: Any, d_qkv: Any, d_bias: Any, d_pooled: Any,
    windows: Any, d_results: Any, queries: Any,
) -> None:  # fmt: skip
    features = heads.number * heads.size
    zeros = jnp.zeros((1, features), d_out.dtype)
    part.cut(qkv, windows, bias[...])
    result.cut(d_out, d_results, zeros)
    if pooled is not None:
        result.cut(pooled, queries, zeros)
    d_bias[...] = jnp.zeros(d_bias.shape, d_bias.dtype)
    outside = part.outside()

    def attend(window: Any) -> None:
        q, k, v = jnp.split(windows[window], 3, axis=1)
        d_q, d_k, d_v = backward(heads, None, q if pooled is None else queries[window], k, v, d_results[window])
        if pooled is not None:
            queries[window] = d_q
            d_q = jnp.zeros_like(d_k)
        gradient = jnp.concatenate([d_q, d_k, d_v], axis=1)
        windows[window] = gradient
        if any(length % part.side for length in part.size):
            d_bias[...] += jnp.sum(jnp.where(outside(window), gradient.astype(jnp.float32), 0.0), axis=0, keepdims=True)

    each(part.windows, heads, attend)
    part.place(windows, d_qkv)
    if pooled is not None:
        result.place(queries, d_pooled)
