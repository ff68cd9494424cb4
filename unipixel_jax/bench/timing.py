"""Timing of work on devices, for all benchmarks of ``unipixel-jax bench``."""

from __future__ import annotations

import time
from collections.abc import Callable

import jax


def clock(work: Callable[[], object]) -> float:
    """Return the seconds until the arrays that a call returns are computed."""
    started = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - started


def timed(work: Callable[[], object], repeats: int, per: int = 1) -> list[float]:
    """Return the seconds per item of each of some calls, of which each handles ``per`` items; one call before them compiles and is not timed."""
    jax.block_until_ready(work())
    return [clock(work) / per for _ in range(repeats)]
