"""SIGTERM and Ctrl-C: training saves and ends in order."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)
"""What schedulers send before they take a machine away, and Ctrl-C."""


class Interruption:
    """Takes note of the first signal to end; the second ends the process at once. A context, of the main thread."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        """Which has come."""
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        os.write(2, f"{self.signal.name}: saving after this step; a second signal ends at once, without saving\n".encode())  # print may be interrupted itself
