"""What a benchmark's scorer returns, and the pool of processes that scores many samples."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from unipixel_jax.core.files import replacing

T = TypeVar("T")
R = TypeVar("R")

SCORES = dict[str, Any]
"""Numbers by the reference's names, perhaps in groups; None where there is nothing to take a mean of."""


@dataclass(frozen=True)
class Scores:
    """The scores of one benchmark.

    Attributes:
        benchmark: its name.
        split: the split's name.
        scores: what the reference's scorer computes, unrounded, in the units in which it prints them.
        per_sample: the scores of each sample, with its names.
        corrected: the right numbers where the reference's are not, by the same names; None where all are right, or nothing is known to correct them.
        why: one sentence for each correction.
        failures: samples without a sound prediction, by name, with the reason.
    """

    benchmark: str
    split: str
    scores: SCORES
    per_sample: Sequence[Mapping[str, Any]]
    corrected: SCORES | None = None
    why: Sequence[str] = ()
    failures: Sequence[Mapping[str, str]] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """``benchmark``, ``split``, ``scores``, ``corrected`` (null, or ``scores`` and ``why``), ``failures`` and ``per_sample``."""
        return {
            "benchmark": self.benchmark,
            "split": self.split,
            "scores": finite(self.scores),
            "corrected": None if self.corrected is None else {"scores": finite(self.corrected), "why": list(self.why)},
            "failures": list(self.failures),
            "per_sample": [finite(sample) for sample in self.per_sample],
        }

    def save_json(self, path: str | Path) -> None:
        """Write ``to_json`` to a file.

        Raises:
            UserError: it cannot be written.
        """
        with replacing(path) as aside:
            aside.write_text(json.dumps(self.to_json(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def map_samples(score: Callable[[T], R], samples: Sequence[T], workers: int, *, chunk: int = 4) -> Iterable[R]:
    """Score samples in their order.

    Args:
        score: a function of a module, so that other processes can import it.
        samples: what it takes; small, since it is sent to the processes.
        workers: processes; 1 for this one.
        chunk: samples that are sent at once.
    """
    if workers == 1 or len(samples) <= chunk:
        return map(score, samples)
    # Processes are started anew rather than copied, since a copy of a process with threads, as JAX has them, may wait for ever.
    with ProcessPoolExecutor(min(workers, -(-len(samples) // chunk)), mp_context=get_context("spawn")) as pool:
        return list(pool.map(score, samples, chunksize=chunk))


def mean(values: Sequence[float]) -> float | None:
    """The mean; None of nothing."""
    return math.fsum(values) / len(values) if values else None


def finite(value: Any) -> Any:
    """The value with plain floats, and with None for what is no number, which JSON does not know."""
    if isinstance(value, Mapping):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value
