"""A progress bar in bytes, on terminals only."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

log = logging.getLogger(__name__)


@contextmanager
def bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Draw a progress bar on stderr, if that is a terminal, and yield a function to call with each number of bytes done.

    Where a command's spinner shows the log records (level DEBUG), a bar would break its line, so each hundredth is a record instead.

    Args:
        title: what is done, in a word or two.
        total: number of bytes in all.
    """
    if log.isEnabledFor(logging.DEBUG):
        yield _Records(title, total).advance
        return
    columns = (TextColumn(title), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(title, total=total)
        yield lambda count: progress.advance(task, count)


class _Records:
    """Log records of how much is done."""

    def __init__(self, title: str, total: int) -> None:
        self.title, self.total, self.done = title, total, 0

    def advance(self, count: int) -> None:
        """Count more bytes, and log a record if they complete a hundredth."""
        before, self.done = self.done, self.done + count
        if 100 * before // self.total < 100 * self.done // self.total:
            log.debug("%s: %.2f of %.2f GB", self.title, self.done / 1e9, self.total / 1e9)
