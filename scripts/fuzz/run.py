"""The runner of cases, which watches time, memory and files of each case's process."""

from __future__ import annotations

import gc
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from .case import PLACE, Case, Kind
from .judge import FAILURES, MAX_GROWTH, Ended, judge, snapshot
from .processes import POLL, call, fork, gone, import_all, in_child, write_to


@dataclass(frozen=True)
class Result:
    """The outcome of a case; ``seconds`` and ``growth`` (bytes of memory) are those of ``judge.Ended``."""

    kind: str
    number: int
    outcome: str
    detail: str
    note: str
    command: str
    seconds: float
    growth: int

    @property
    def failed(self) -> bool:
        """Whether the outcome is a failure."""
        return self.outcome in FAILURES


class Runner:
    """Runs cases below a folder.

    Args:
        work: the folder; it holds ``seeds``, ``programs`` (compiled by JAX), ``failures`` and the running case.
        seed: seed of all random numbers.
        seconds: longest time of a case.
    """

    def __init__(self, work: Path, seed: int, seconds: float) -> None:
        self.work, self.seed, self.seconds = work, seed, seconds
        import_all()
        for name in ("seeds", "case", "control", "failures"):
            shutil.rmtree(work / name, ignore_errors=True)
            (work / name).mkdir(parents=True)

    def prepare(self, kind: Kind) -> None:
        """Write the sound files of a kind."""
        folder = self.work / "seeds" / kind.name
        folder.mkdir()
        in_child(lambda: kind.prepare(folder), self.work / "seeds" / f"{kind.name}.log")

    def run(self, kind: Kind, number: int) -> Result:
        """Run one case."""
        top, control = self.work / "case", self.work / "control"
        for place in (top, control):
            shutil.rmtree(place, ignore_errors=True)
        folder = top / PLACE
        for place in (folder, top / "tmp", top / "home", control):
            place.mkdir(parents=True)
        rng = Random(f"{self.seed} {kind.name} {number}")
        ended = self._watch(lambda: self._child(kind, rng, folder, control), control)
        made = json.loads((control / "made.json").read_text()) if (control / "made.json").exists() else None
        if made is None:
            raise RuntimeError(f"{kind.name} {number} could not be made:\n{ended.err}")
        case = Case([], made["note"], tuple(made["outputs"]), tuple(made["kept"]), made["anywhere"], made["talks"])
        outcome, detail = judge(ended, made["before"], snapshot(top), case)
        return Result(kind.name, number, outcome, detail, case.note, made["command"], ended.seconds, ended.growth)

    def keep(self, result: Result) -> Path:
        """Move the case that ran last, with its output, to the folder of failures; return its new folder."""
        place = self.work / "failures" / f"{result.kind}-{result.number}"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        (place / "about.txt").write_text(f"{result.outcome}: {result.detail}\n{result.command}\n{result.note}\n", encoding="utf-8", errors="backslashreplace")
        shutil.move(self.work / "control", place / "control")
        shutil.move(self.work / "case", place / "case")
        return place

    def _child(self, kind: Kind, rng: Random, folder: Path, control: Path) -> int:
        write_to(control / "out", control / "err")
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        os.environ |= {"HOME": str(self.work / "case" / "home"), "TMPDIR": str(self.work / "case" / "tmp")}
        tempfile.tempdir = None
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.chdir(folder)
        seeds = self.work / "seeds" / kind.name
        case = kind.make(seeds, folder, rng)
        gc.collect()
        for number in (1, 2):  # drops what making the case printed, which is not the command's output
            os.ftruncate(number, 0)
        made = {
            "note": case.note,
            "command": case.command,
            "outputs": case.outputs,
            "kept": case.kept,
            "anywhere": case.anywhere,
            "talks": case.talks,
            "before": snapshot(self.work / "case"),
            "resident": _resident(os.getpid()),
            "started": time.monotonic(),
        }
        (control / "making.json").write_text(json.dumps(made))
        os.rename(control / "making.json", control / "made.json")
        return call(case.run) if isinstance(case.run, list) else case.run()

    def _watch(self, child: Callable[[], int], control: Path) -> Ended:
        pid = fork(child)
        begun, resident, started, stopped = time.monotonic(), 0, 0.0, ""
        while True:
            done, status, usage = os.wait4(pid, os.WNOHANG)
            now = time.monotonic()
            if done:
                break
            if not started and (control / "made.json").exists():
                made = json.loads((control / "made.json").read_text())
                resident, started = made["resident"], made["started"]
            if started and now - started > self.seconds:
                stopped = stopped or "hang"
            if started and _resident(pid) - resident > MAX_GROWTH:
                stopped = "memory"
            if stopped or now - begun > 10 * self.seconds:
                os.kill(pid, signal.SIGKILL)
            time.sleep(POLL)
        if not started and (control / "made.json").exists():
            made = json.loads((control / "made.json").read_text())
            resident, started = made["resident"], made["started"]
        processes = not gone(pid)
        growth = max(0, usage.ru_maxrss * 1024 - resident)
        texts = [(control / name).read_text(encoding="utf-8", errors="replace") if (control / name).exists() else "" for name in ("out", "err")]
        return Ended(status, now - (started or begun), growth, stopped, texts[0], texts[1], processes)


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return 0
