"""Processes that are forked from one which has imported everything: a start takes 0.05 s in place of 3.

JAX must not have been used before, since its threads would be missing in the child; so sound files are made in a child, too.
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
    "bench.cli", "plan.cli", "demo",
)  # fmt: skip
"""Modules of unipixel_jax that commands import when they are called."""

POLL = 0.01
"""Seconds between two looks at a process."""

_BROKEN = 99
"""Status of a child that could not do its work."""


def import_all() -> None:
    """Import what commands import."""
    for name in (*(f"unipixel_jax.{name}" for name in IMPORTED), "av", "pi_heif", "pycocotools.mask"):
        importlib.import_module(name)


def in_child(work: Callable[[], None], log: Path) -> None:
    """Do something in a forked process, whose words go to a file.

    Raises:
        RuntimeError: it failed; the message is what it wrote.
    """

    def child() -> int:
        write_to(log, log)
        work()
        return 0

    if os.waitpid(fork(child), 0)[1]:
        raise RuntimeError(f"what is needed could not be made:\n{log.read_text(errors='replace')}")


def write_to(out: Path, err: Path) -> None:
    """Let standard output and standard error of this process be files."""
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)


def fork(child: Callable[[], int]) -> int:
    """Start a process, in a group of its own, which calls a function and ends with the status that it returns; gives its id."""
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
    """Whether a process group ends within a second, as helpers do that wait for their parent's end; it is killed if not."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(POLL)
    os.killpg(group, signal.SIGKILL)
    return False


def call(argv: list[str]) -> int:
    """The status with which ``unipixel-jax`` would end."""
    try:
        return main(argv)
    except SystemExit as ending:  # argparse
        return ending.code if isinstance(ending.code, int) else 1
