"""Cases in processes of their own, which are forked from one that has imported everything: a start takes 0.05 s in place of 3.

JAX must not have been used before, since its threads would be missing in the child; so sound files are made in a child, too.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from unipixel_jax.cli import main

from .case import Case, Kind
from .judge import MAX_GROWTH, MAX_SECONDS, Ended, judge, snapshot

_POLL = 0.01
_BROKEN = 99
"""Status of a child that could not make its case: a fault of the fuzz."""


@dataclass(frozen=True)
class Result:
    """What became of a case."""

    kind: str
    number: int
    outcome: str
    detail: str
    note: str
    command: str
    seconds: float
    growth: int


class Runner:
    """Runs cases below a folder.

    Args:
        work: the folder; it holds ``seeds``, ``programs`` (compiled by JAX), ``failures`` and the running case.
        seed: of all random numbers.
    """

    def __init__(self, work: Path, seed: int) -> None:
        self.work, self.seed = work, seed
        for name in ("seeds", "case", "control", "failures"):
            shutil.rmtree(work / name, ignore_errors=True)
            (work / name).mkdir(parents=True)

    def prepare(self, kind: Kind) -> None:
        """Make the sound files of a kind."""
        folder = self.work / "seeds" / kind.name
        folder.mkdir()
        in_child(lambda: kind.prepare(folder))

    def run(self, kind: Kind, number: int) -> Result:
        """Run one case; a failing one is kept."""
        # deep enough that `..` and `../..` stay within
        top, control = self.work / "case", self.work / "control"
        for folder in (top, control):
            shutil.rmtree(folder, ignore_errors=True)
        folder = top / "a" / "b" / "c"
        for made in (folder, top / "tmp", top / "home", control):
            made.mkdir(parents=True)
        rng = Random(f"{self.seed} {kind.name} {number}")
        ended = self._watch(lambda: self._child(kind, rng, folder, control), control)
        made = json.loads((control / "made.json").read_text()) if (control / "made.json").exists() else None
        if made is None:
            raise RuntimeError(f"{kind.name} {number} could not be made:\n{ended.err}")
        places = [tuple(f"a/b/c/{name}" for name in made[key]) for key in ("outputs", "kept")]
        outcome, detail = judge(ended, made["before"], snapshot(top), *places)
        result = Result(kind.name, number, outcome, detail, made["note"], made["command"], ended.seconds, ended.growth)
        return result

    def keep(self, result: Result) -> Path:
        """Keep the case that ran last, with what it wrote."""
        place = self.work / "failures" / f"{result.kind}-{result.number}"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        (place / "about.txt").write_text(f"{result.outcome}: {result.detail}\n{result.command}\n{result.note}\n", encoding="utf-8", errors="backslashreplace")
        shutil.move(self.work / "control", place / "control")
        shutil.move(self.work / "case", place / "case")
        return place

    def _child(self, kind: Kind, rng: Random, folder: Path, control: Path) -> int:
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(control / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.chdir(folder)
        seeds = self.work / "seeds" / kind.name
        case = kind.make(seeds, folder, rng)
        gc.collect()
        made = {
            "note": case.note,
            "command": case.command,
            "outputs": case.outputs,
            "kept": case.kept,
            "before": snapshot(self.work / "case"),
            "resident": _resident(os.getpid()),
            "started": time.monotonic(),
        }
        (control / "making.json").write_text(json.dumps(made))
        os.rename(control / "making.json", control / "made.json")
        return _run(case)

    def _watch(self, child: Callable[[], int], control: Path) -> Ended:
        pid = _fork(child)
        begun, resident, started, stopped = time.monotonic(), 0, 0.0, ""
        while True:
            done, status, usage = os.wait4(pid, os.WNOHANG)
            now = time.monotonic()
            if done:
                break
            if not started and (control / "made.json").exists():
                made = json.loads((control / "made.json").read_text())
                resident, started = made["resident"], made["started"]
            if started and now - started > MAX_SECONDS:
                stopped = stopped or "hang"
            if started and _resident(pid) - resident > MAX_GROWTH:
                stopped = "memory"
            if stopped or now - begun > 10 * MAX_SECONDS:
                os.kill(pid, signal.SIGKILL)
            time.sleep(_POLL)
        if not started and (control / "made.json").exists():
            made = json.loads((control / "made.json").read_text())
            resident, started = made["resident"], made["started"]
        processes = True
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:
            processes = False
        growth = max(0, usage.ru_maxrss * 1024 - resident)
        texts = [(control / name).read_text(encoding="utf-8", errors="replace") if (control / name).exists() else "" for name in ("out", "err")]
        return Ended(status, now - (started or begun), growth, stopped, *texts, processes)


def in_child(work: Callable[[], None]) -> None:
    """Do something in a forked process.

    Raises:
        RuntimeError: it failed; its traceback was shown.
    """

    def child() -> int:
        work()
        return 0

    if os.waitpid(_fork(child), 0)[1]:
        raise RuntimeError("what is needed could not be made; see above")


def _fork(child: Callable[[], int]) -> int:
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


def _run(case: Case) -> int:
    if not isinstance(case.run, list):
        return case.run()
    try:
        return main(case.run)
    except SystemExit as ending:  # argparse
        return ending.code if isinstance(ending.code, int) else 1


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return 0
