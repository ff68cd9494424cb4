"""Processes that are forked from one that has imported everything, so that a start takes 0.05 s in place of 3.

The forking process must not use JAX, since its threads would be missing in the child. So sound files are made in a child too.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from unipixel_jax.cli import main

IMPORTED = (
    "convert.cli", "convert.inspection", "convert.to_jax", "convert.to_torch", "convert.trained", "convert.random", "data.cli", "data.tfds.builder",
    "data.tfds.source", "infer.cli", "infer.loading", "infer.predictor", "infer.visualize", "parity.cli", "parity.recording", "parity.run",
    "processing.video", "train.config", "train.cli", "train.export", "train.loop", "train.reproduce", "synthetic.cli", "synthetic.evaluation",
    "bench.measuring", "plan.cli", "demo",
)  # fmt: skip
"""Modules of unipixel_jax that commands import when they are called."""

POLL = 0.01
"""Seconds between two checks of a process."""

_BROKEN = 99
"""The exit status of a child that raised an exception."""


def import_all() -> None:
    """Import the modules and packages that commands import."""
    for name in (*(f"unipixel_jax.{name}" for name in IMPORTED), "av", "pi_heif", "pycocotools.mask"):
        importlib.import_module(name)


def in_child(work: Callable[[], None], log: Path) -> None:
    """Call a function in a forked process whose output goes to a file.

    Raises:
        RuntimeError: the process failed; the message has its output.
    """

    def child() -> int:
        write_to(log, log)
        work()
        return 0

    if os.waitpid(fork(child), 0)[1]:
        raise RuntimeError(f"what is needed could not be made:\n{log.read_text(errors='replace')}")


def write_to(out: Path, err: Path) -> None:
    """Redirect standard output and standard error of this process to files."""
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)


def fork(child: Callable[[], int]) -> int:
    """Start a process, in a group of its own, that calls a function and exits with the status that it returns; return the process's id."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.setpgid(pid, pid)
        return pid
    code = _BROKEN
    try:
        os.setpgid(0, 0)
        code = child()
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def gone(group: int) -> bool:
    """Return whether all processes of a group end within a second, as those do that watch their parent; kill them if not."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(POLL)
    os.killpg(group, signal.SIGKILL)
    return False


def call(argv: list[str]) -> int:
    """Run ``unipixel-jax`` in this process; return its exit status."""
    try:
        return main(argv)
    except SystemExit as ending:  # argparse exits by itself
        return ending.code if isinstance(ending.code, int) else 1
