"""SIGTERM and Ctrl-C: training saves and ends in order."""

from __future__ import annotations

import os
import signal
import threading
from types import TracebackType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)
"""What schedulers send before they take a machine away, and Ctrl-C."""


class Interruption:
    """Takes note of the first signal to end; the second ends the process at once, with status 128 and the signal's number. A context, of the main thread.

    A thread listens: Python's own handlers wait until the main thread is back from compiling or from a step.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        """Which has come."""

    def __enter__(self) -> Interruption:
        listens, self._notes = os.pipe()
        os.set_blocking(self._notes, False)
        self._handlers: dict[signal.Signals, Any] = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
        self._noted_before = signal.set_wakeup_fd(self._notes)
        threading.Thread(target=self._listen, args=(listens,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        signal.set_wakeup_fd(self._noted_before)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        os.close(self._notes)  # the thread reads the end

    def _listen(self, listens: int) -> None:
        while number := os.read(listens, 1):
            if number[0] not in SIGNALS:
                continue
            if self.signal is not None:
                os._exit(128 + number[0])
            self.signal = signal.Signals(number[0])
            os.write(2, f"{self.signal.name}: saving after this step; a second signal ends at once, without saving\n".encode())
        os.close(listens)
