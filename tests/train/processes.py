"""Several processes of a test, which find each other on this machine."""

import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

DEVICES = 4
"""Pretended devices of each process."""


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@dataclass(frozen=True)
class Ended:
    """How a process ended: its status, what it wrote, and when (``time.monotonic()``)."""

    status: int
    out: str
    err: str
    when: float

    @property
    def errors(self) -> list[str]:
        """The lines that tell a user what was wrong."""
        return [line for line in self.err.splitlines() if line.startswith("error: ")]


class Processes:
    """Started processes. A context, after which none is left."""

    def __init__(self, folder: Path, commands: list[list[str]], **environment: str) -> None:
        """Start Python with each list of arguments; what they write goes to files in the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        self.files = [(folder / f"{number}.out", folder / f"{number}.err") for number in range(len(commands))]
        flags = f"--xla_force_host_platform_device_count={DEVICES} --xla_backend_optimization_level=0"
        self.started = []
        # XLA has as many threads as this says there are processors; with fewer than collectives that run at once, these wait for each other for ever
        given = os.environ | {"XLA_FLAGS": flags, "NPROC": "16"} | environment
        for command, (out_file, err_file) in zip(commands, self.files, strict=True):
            with out_file.open("w") as out, err_file.open("w") as err:
                self.started.append(subprocess.Popen([sys.executable, *command], stdout=out, stderr=err, env=given))

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.started:
            process.kill()
            process.wait()

    def wait_for(self, number: int, text: str, seconds: float = 600) -> None:
        """Return once a process has written some text."""
        end = time.monotonic() + seconds
        while not any(text in file.read_text() for file in self.files[number]):
            assert self.started[number].poll() is None and time.monotonic() < end, f"process {number} did not write {text!r}: {self._written(number)}"
            time.sleep(0.05)

    def ended(self, seconds: float = 600) -> list[Ended]:
        """Wait for the end of all."""
        end, when = time.monotonic() + seconds, [0.0] * len(self.started)
        while not all(when):
            for number, process in enumerate(self.started):
                when[number] = when[number] or (time.monotonic() if process.poll() is not None else 0.0)
            assert time.monotonic() < end, f"processes run on: {[self._written(number) for number, done in enumerate(when) if not done]}"
            time.sleep(0.05)
        return [Ended(p.returncode, *(file.read_text() for file in files), t) for p, files, t in zip(self.started, self.files, when, strict=True)]

    def _written(self, number: int) -> str:
        return "".join(file.read_text() for file in self.files[number])[-3000:]
