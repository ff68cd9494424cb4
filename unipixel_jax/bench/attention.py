"""``unipixel-jax bench attention``: every attention backend at the shapes that the models use.

The programs are timed if the chip is here, and only compiled if it is not.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from unipixel_jax.bench.hiera import MAPS, MapWork
from unipixel_jax.bench.memory import MEMORY, MemoryWork
from unipixel_jax.bench.timing import clock
from unipixel_jax.core.accelerators import CHIPS, LEAST_EFFORT, compile_mesh, is_here
from unipixel_jax.core.files import replacing
from unipixel_jax.core.platform import platform
from unipixel_jax.errors import UserError
from unipixel_jax.ops.attention import BACKENDS, AttnMask, WeightDropout, attention
from unipixel_jax.ops.attention.spec import Spec
from unipixel_jax.plan.hlo import read_costs


@dataclass(frozen=True)
class Work:
    """The shapes and the mask of one call of attention.

    Attributes:
        batch: number of rows.
        queries, keys: number of queries and of keys of a row.
        heads, key_heads: number of query heads and of key heads.
        head_size, value_size: features of a query or key, and of a value.
        causal: whether a query sees no later keys.
        segments: number of equal parts of the row that see only themselves; 0 for a mask without segments.
        dropout: rate at which attention weights are dropped; None for no dropout.
    """

    batch: int
    queries: int
    keys: int
    heads: int
    key_heads: int
    head_size: int
    value_size: int
    causal: bool = False
    segments: int = 0
    dropout: float | None = None

    def spec(self, dtype: jnp.dtype) -> Spec:
        """What a backend is asked, for the platform of the mesh that is set."""
        sizes = self.batch, self.queries, self.keys, self.heads, self.key_heads, self.head_size, self.value_size
        return Spec(*sizes, dtype, self.causal, self.segments > 0, platform(), self.dropout is not None)

    @property
    def visible(self) -> float:
        """The number of pairs of a query and a key that it sees, over all heads."""
        part = 1 / max(self.segments, 1)
        rows = self.queries * part
        pairs = (rows * (rows + 1) / 2 if self.causal else rows * self.keys * part) / part
        return self.batch * self.heads * pairs

    def flops(self, backward: bool) -> float:
        """Return the FLOPs: two products of each visible pair forward, and five more backward, where the scores are computed again."""
        forward = 2 * self.visible * (self.head_size + self.value_size)
        return forward + (2 * self.visible * (3 * self.head_size + 2 * self.value_size) if backward else 0)

    def nbytes(self, itemsize: int, backward: bool) -> float:
        """Return the bytes that must move: each operand is read once and each result written once, and the backward pass moves twice as much again."""
        sizes = self.heads * self.queries * (self.head_size + self.value_size) + self.key_heads * self.keys * (self.head_size + self.value_size)
        return self.batch * sizes * itemsize * (3 if backward else 1)

    def arguments(self, dtype: jnp.dtype) -> tuple[Any, ...]:
        """Return the shapes of queries, keys, values, mask and dropout."""
        b, shape = self.batch, jax.ShapeDtypeStruct
        segments = (shape((b, self.queries), jnp.int32), shape((b, self.keys), jnp.int32)) if self.segments else (None, None)
        return (
            shape((b, self.queries, self.heads, self.head_size), dtype),
            shape((b, self.keys, self.key_heads, self.head_size), dtype),
            shape((b, self.keys, self.key_heads, self.value_size), dtype),
            AttnMask(self.causal, *segments),
            None if self.dropout is None else WeightDropout(shape((b, self.key_heads), jnp.int32), self.dropout),  # type: ignore[arg-type]
        )

    def run(self, backend: str) -> Callable[..., jax.Array]:
        """Return a function of the arguments."""
        return lambda q, k, v, mask, dropout: attention(q, k, v, mask, dropout=dropout, implementation=backend)


WORKS: Mapping[str, Work | MapWork | MemoryWork] = {
    "prefill 8k": Work(1, 8192, 8192, 16, 2, 128, 128, causal=True),
    "prefill 32k": Work(1, 32768, 32768, 16, 2, 128, 128, causal=True),
    "packed 8k": Work(1, 8192, 8192, 16, 2, 128, 128, causal=True, segments=4),
    "one key head 16k": Work(1, 16384, 16384, 2, 1, 128, 128, causal=True),
    "decode 4k": Work(1, 1, 4096, 16, 2, 128, 128, segments=1),
    "vision frames": Work(1, 8192, 8192, 16, 16, 80, 80, segments=4),
    "vision windows": Work(128, 64, 64, 16, 16, 80, 80, segments=1),
    "SAM memory": Work(1, 2304, 16192, 1, 1, 256, 64, segments=1),
    "SAM memory, training": Work(1, 2304, 16192, 1, 1, 256, 256, segments=1, dropout=0.1),
    "Hiera map": Work(1, 2304, 2304, 8, 8, 56, 56),
    "Hiera windows": Work(128, 196, 196, 8, 8, 56, 56),
    **MAPS,
    **MEMORY,
}
"""Attention in UniPixel-3B's language model and vision tower, and in SAM 2.1 base+ at 768 pixels, by name."""

MAX_TEMPORARY = 4_000_000_000
"""The most bytes besides arguments and results with which a program is run on a CPU, whose memory other programs share. A larger program is only compiled."""

SIGNS = {"RESOURCE_EXHAUSTED": "does not fit the chip's memory", "cuDNN": "cuDNN is not installed, or does not do this"}
"""Parts of compilers' error messages, and what they mean."""


@dataclass(frozen=True)
class Result:
    """The measurement of one backend at one call of attention.

    Attributes:
        work: the call, a name in ``WORKS``.
        backend: a name in ``BACKENDS``.
        chip: "cpu", or a name in ``CHIPS``.
        refused: why the backend was not run; None if it was. With a reason, neither the time nor, as a rule, the memory is known.
        seconds: the median time of a run; None if the program was only compiled.
        temporary: bytes that the compiled program needs besides arguments and results.
        moved: bytes of main memory that the program reads and writes (plan/hlo_bytes.py); None if it was compiled for the CPU.
        flops: FLOPs of the visible pairs.
        roofline: seconds that no program on this chip could beat.
    """

    work: str
    backend: str
    chip: str
    refused: str | None = None
    seconds: float | None = None
    temporary: int | None = None
    moved: float | None = None
    flops: float | None = None
    roofline: float | None = None

    @property
    def efficiency(self) -> float | None:
        """The roofline as a share of the measured time; None where either is unknown."""
        return self.roofline / self.seconds if self.roofline and self.seconds else None


def measure(
    names: Sequence[str], backends: Sequence[str], chip: str, dtype: jnp.dtype, backward: bool, repeats: int, full_effort: bool = True
) -> Iterator[Result]:
    """Yield a result for every call of attention and every backend.

    Args:
        names: names in ``WORKS``.
        backends: names in ``BACKENDS``.
        chip: "cpu" to run here; a name in ``CHIPS`` to run if that is the device here, and to compile if not.
        dtype: dtype of queries, keys and values.
        backward: compute the gradients too.
        repeats: number of timed runs.
        full_effort: compile for TPUs as a run does, instead of with the compiler's least effort.

    Raises:
        UserError: the chip's compiler is not installed.
    """
    here = chip == "cpu" or is_here(chip)
    mesh = None if here else compile_mesh(chip)
    peak = (_cpu_flops(dtype), _cpu_bandwidth()) if chip == "cpu" else (CHIPS[chip].flops, CHIPS[chip].bandwidth)
    options = None if full_effort or here or CHIPS[chip].platform != "tpu" else LEAST_EFFORT
    with nullcontext() if mesh is None else jax.set_mesh(mesh):
        for name in names:
            work = WORKS[name]
            roofline = max(work.flops(backward) / peak[0], work.nbytes(dtype.itemsize, backward) / peak[1])
            for backend in backends:
                result = Result(name, backend, chip, flops=work.flops(backward), roofline=roofline)
                yield _measured(result, work, dtype, backward, repeats, mesh, options)
                jax.clear_caches()


def _measured(result: Result, work: Work | MapWork | MemoryWork, dtype: jnp.dtype, backward: bool, repeats: int, mesh: Any, options: Any) -> Result:
    arguments = work.arguments(dtype)
    reason = BACKENDS[result.backend].why_not(work.spec(jnp.dtype(dtype)))
    if reason is not None:
        return dataclasses.replace(result, refused=reason)

    def call(*arguments: Any) -> Any:
        run = work.run(result.backend)
        if not backward:
            return run(*arguments)
        out, pull = jax.vjp(run, *arguments)
        return out, pull(out)

    where: dict[str, Any] = {} if mesh is None else {"in_shardings": NamedSharding(mesh, PartitionSpec())}
    try:
        program = jax.jit(call, **where).lower(*arguments).compile(compiler_options=options)
    except RuntimeError as error:
        reason = next((reason for sign, reason in SIGNS.items() if sign in str(error)), None)
        if reason is None:
            raise
        return dataclasses.replace(result, refused=reason)
    memory = program.memory_analysis()
    assert memory is not None, "every compiler that is asked here reports memory"
    result = dataclasses.replace(result, temporary=memory.temp_size_in_bytes)
    if mesh is not None:
        return dataclasses.replace(result, moved=read_costs(program.as_text() or "", (0,), unknown_trips=1).bytes)
    if result.chip == "cpu" and memory.temp_size_in_bytes > MAX_TEMPORARY:
        return dataclasses.replace(result, refused=f"needs {memory.temp_size_in_bytes / 1e9:.0f} GB, more than the {MAX_TEMPORARY / 1e9:.0f} GB taken here")
    made = _random(arguments, work.segments)
    jax.block_until_ready(program(*made))
    return dataclasses.replace(result, seconds=statistics.median(clock(lambda: program(*made)) for _ in range(repeats)))


def _random(arguments: tuple[Any, ...], segments: int) -> tuple[Any, ...]:
    """Return random arrays in the place of shapes; integers become the numbers of equal segments, from 1 on."""
    rng = np.random.default_rng(0)

    def fill(a: jax.ShapeDtypeStruct) -> jax.Array:
        if a.dtype == jnp.int32:
            return jnp.broadcast_to((jnp.arange(a.shape[1]) * segments // a.shape[1] + 1)[None], a.shape)
        return jnp.asarray(rng.standard_normal(a.shape, np.float32), a.dtype)

    return jax.tree.map(fill, arguments)


def _cpu_flops(dtype: jnp.dtype) -> float:
    """Measure the FLOPs per second of a large matrix product, since there is no data sheet of this machine's processor."""
    a = jnp.ones((2048, 2048), dtype)
    return 2 * 2048**3 / _best(jax.jit(jnp.matmul), a, a)


def _cpu_bandwidth() -> float:
    """Measure the bytes per second that a large elementwise operation reads and writes."""
    a = jnp.ones(64 * 2**20, jnp.float32)
    return 2 * a.nbytes / _best(jax.jit(lambda a: a + 1), a)


def _best(program: Callable[..., Any], *arguments: Any) -> float:
    jax.block_until_ready(program(*arguments))
    return min(clock(lambda: program(*arguments)) for _ in range(3))


def plot(results: Sequence[Result], path: Path) -> None:
    """Draw bars of time and of temporary memory for every call of attention and every backend.

    Args:
        results: the results to show.
        path: the file to write; its suffix says the format.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("--plot needs matplotlib: pip install matplotlib") from None
    works = list(dict.fromkeys(r.work for r in results))
    backends = [b for b in dict.fromkeys(r.backend for r in results) if any(r.backend == b and r.refused is None for r in results)]
    panels = [("temporary memory, MB", lambda r: None if r.temporary is None else max(r.temporary / 1e6, 1e-3))]
    if any(r.seconds for r in results):
        panels.insert(0, ("time, ms", lambda r: None if r.seconds is None else r.seconds * 1e3))
    figure = Figure(figsize=(7 * len(panels), 1.2 + 0.55 * len(works)), layout="constrained")
    for axes, (label, value) in zip(np.atleast_1d(figure.subplots(1, len(panels), sharey=True)), panels, strict=True):
        height = 0.8 / len(backends)
        for row, backend in enumerate(backends):
            found = [(works.index(r.work) + (row - (len(backends) - 1) / 2) * height, value(r)) for r in results if r.backend == backend]
            places, lengths = zip(*((place, length) for place, length in found if length is not None), strict=True)
            axes.barh(places, lengths, height, label=backend)
        axes.set(xscale="log", xlabel=label, yticks=range(len(works)), yticklabels=works)
        axes.grid(axis="x", alpha=0.3)
    figure.axes[0].invert_yaxis()
    figure.axes[-1].legend(loc="best")
    figure.suptitle(f"Attention on {results[0].chip}")
    with replacing(path) as aside:
        figure.savefig(aside, format=path.suffix.lstrip(".") or "png", dpi=120)
