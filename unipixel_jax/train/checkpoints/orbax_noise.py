"""Orbax tells of a failed read or write many times over: each thread logs it, and what it gave up half done complains when it finds nobody waiting.

The failure itself is raised, and told once by who catches it. What is silenced here is the rest, and only where it comes from Orbax.
"""

from __future__ import annotations

import functools
import logging
import sys
import warnings
from typing import Any


@functools.cache
def silence() -> None:
    """Silence it, for the life of the process: what was given up may complain at any time later."""
    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
    logging.getLogger("asyncio").addFilter(lambda record: not _never_retrieved(record.getMessage()))
    warnings.filterwarnings("ignore", "coroutine '.*(orbax|array|restore|serialize|deserialize).*' was never awaited", RuntimeWarning)
    told = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not _given_up(unraisable):
            told(unraisable)

    sys.unraisablehook = hook


def _never_retrieved(message: str) -> bool:
    """Whether asyncio tells of a read of Orbax, or of TensorStore for it, whose failure nobody asked for."""
    return "exception was never retrieved" in message and ("orbax" in message or "tensorstore" in message)


def _given_up(unraisable: Any) -> bool:
    """Whether it is a coroutine of Orbax, or a read of TensorStore that ended after Orbax had closed its event loop."""
    code = getattr(unraisable.object, "cr_code", None)
    return "orbax" in code.co_filename if code else unraisable.object is None and str(unraisable.exc_value) == "Event loop is closed"
