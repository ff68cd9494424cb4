"""Interruption of a run by SIGTERM or Ctrl-C, after which it saves its state and ends."""

from __future__ import annotations

import os
import signal
import threading
from types import TracebackType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)
"""The signals that interrupt a run: SIGTERM, which schedulers send before they take a machine away, and SIGINT of Ctrl-C."""


class Interruption:
    """A context of the main thread that records the first signal to end; the second ends the process at once, with status 128 plus the signal's number.

    A thread listens for the signals, because Python runs its own handlers only once the main thread has returned from compiling or from a step.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        """The signal that has come, or None."""

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
        os.close(self._notes)  # the thread then reads the end of the file, and ends

    def _listen(self, listens: int) -> None:
        while number := os.read(listens, 1):
            if number[0] not in SIGNALS:
                continue
            if self.signal is not None:
                os._exit(128 + number[0])
            self.signal = signal.Signals(number[0])
            os.write(2, f"{self.signal.name}: saving after this step; a second signal ends at once, without saving\n".encode())
        os.close(listens)
