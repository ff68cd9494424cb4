"""What a command is doing, on the standard error of a terminal: the stage from the first second, then frames, frames per second and the time left."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


class Steps:
    """The line that shows what is going on; it shows nothing where the standard error is no terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

        rate = TextColumn("{task.fields[rate]}")
        columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn()
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
        self._task = self._progress.add_task("starting", total=None, rate="")

    def stage(self, what: str, total: int | None = None) -> None:
        """Say what is done now, and of how many frames it consists, where that is known."""
        self._progress.reset(self._task, description=what, total=total, rate="")

    def advance(self) -> None:
        """Count a frame."""
        task = self._progress.tasks[0]
        self._progress.update(self._task, advance=1, rate=f"{task.speed:.1f} frames/s" if task.speed else "")


@contextlib.contextmanager
def progress(first: str) -> Iterator[Steps]:
    """Show progress within the block, which begins with a stage."""
    steps = Steps()
    with steps._progress:
        steps.stage(first)
        yield steps
