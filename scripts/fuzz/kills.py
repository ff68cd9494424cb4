"""Kill commands at file events, and check what they leave: each output must be the old one or the new one, whole, and the next run must complete them.

    python -m scripts.fuzz.kills                 # 100 kills
    python -m scripts.fuzz.kills --only convert --count 20

A command is killed when Python is about to open, rename, make or remove a file, or up to some milliseconds later. After half of the kills the next run is
killed too. The exit status is 1 if something was lost or left; such folders are kept in WORK/killed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random

from .__main__ import WORK, settings

EVENTS = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree", "shutil.move", "shutil.copyfile"}
"""Python's audit events whose first argument is a path. A call through ctypes raises no such event, but looking up its function raises ``ctypes.dlsym``."""

LATER = 0.004
"""The most seconds that a command lives on after the event."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the kills as the arguments say; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m scripts.fuzz.kills", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100, metavar="N", help="kills of all commands together (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers (default: 0)")
    parser.add_argument("--only", action="append", metavar="COMMAND", help="convert, segment or train; may be repeated (default: all)")
    parser.add_argument("--work", type=Path, default=WORK, metavar="DIR", help="folder for files and compiled programs (default: build/fuzz)")
    args = parser.parse_args(argv)
    settings(args.work)
    from .killed import JOBS  # after the settings, which JAX reads when it is imported
    from .processes import import_all

    jobs = [job for job in JOBS if args.only is None or job.name in args.only]
    if not jobs or len(jobs) != len(set(args.only or jobs)):
        parser.error(f"--only: expected some of {', '.join(job.name for job in JOBS)}")
    import_all()
    failed = 0
    for number, job in enumerate(jobs):
        share = args.count // len(jobs) + (number < args.count % len(jobs))
        counts, problems = try_job(job, share, args.work.absolute() / "killed" / job.name, Random(f"{args.seed} {job.name}"))
        print(f"{job.name}: {share} kills; {', '.join(f'{count} {what}' for what, count in counts.most_common())}", flush=True)
        for problem in problems:
            print(f"  {problem}")
        failed += len(problems)
    return 1 if failed else 0


def try_job(job: object, count: int, work: Path, rng: Random) -> tuple[Counter[str], list[str]]:
    """Kill a command ``count`` times; return counts of what was found, and what was wrong."""
    from .killed import Job
    from .processes import in_child

    assert isinstance(job, Job)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    in_child(lambda: job.prepare(work / "seeds"), work / "prepare.log")
    job.furnish(work / "seeds", work / "straight")
    old = job.state(work / "straight")
    run(job.argv, work / "straight", work / "straight.log")  # compiles, so that the next run, whose events are counted, does not
    shutil.rmtree(work / "straight")
    job.furnish(work / "seeds", work / "straight")
    status, events = run(job.argv, work / "straight", work / "straight.log")
    if status:
        raise RuntimeError(f"{job.name} fails without being killed:\n{(work / 'straight.log').read_text()}")
    new, counts, problems = job.state(work / "straight"), Counter(events=len(events)), []
    folder: Path | None = None
    for number in range(3 * count):  # more tries than kills, since a run may end before its event
        if folder is None:
            folder = work / str(number)
            job.furnish(work / "seeds", folder)
        sort = rng.choice(sorted(set(events)))  # most events are openings of files, so a name of events is chosen first
        event = rng.choice([place for place, name in enumerate(events, start=1) if name == sort])
        status, _ = run(job.argv, folder, work / f"{number}.log", event, rng.uniform(0, LATER) if rng.random() < 0.5 else 0)
        counts["died" if status < 0 else "ended before"] += 1
        problem = job.lost(folder, old, new, counts)
        last = counts["died"] == count
        if not problem and (rng.random() < 0.5 or last):
            status, _ = run(job.argv, folder, work / f"{number}-next.log")
            problem = "the next run fails" if status else job.unfinished(folder, new)
            if not problem:
                shutil.rmtree(folder)
                folder = None
        if problem:
            problems.append(f"kill {number}: {problem} ({folder})")
            folder = None
        if last:
            break
    return counts, problems


def run(argv: Sequence[str], folder: Path, log: Path, event: int = 0, later: float = 0) -> tuple[int, list[str]]:
    """Run a command in a folder.

    Args:
        argv: the command's arguments.
        folder: the working directory; only events of files below it count.
        log: the file for what the command prints.
        event: the number of the event at which it is killed, from 1 on; 0 for none.
        later: seconds from that event to the kill.

    Returns:
        The exit status, negative for a signal; and the names of the events, if it was not killed.
    """
    from .processes import call, fork, write_to

    counted = log.with_suffix(".events")
    counted.unlink(missing_ok=True)

    def child() -> int:
        seen: list[str] = []

        def count(name: str, details: tuple[object, ...]) -> None:
            if not _counts(name, details, str(folder)):
                return
            seen.append(name)
            if len(seen) == event and later:
                signal.setitimer(signal.ITIMER_REAL, later)
            elif len(seen) == event:
                os.kill(os.getpid(), signal.SIGKILL)

        write_to(log, log)
        os.chdir(folder)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        sys.addaudithook(count)
        status = call(list(argv))
        counted.write_text("\n".join(seen))
        return status

    status = os.waitstatus_to_exitcode(os.waitpid(fork(child), 0)[1])
    time.sleep(0.02)  # processes that the killed one started need a moment to end
    return status, counted.read_text().split("\n") if counted.exists() else []


def _counts(name: str, details: tuple[object, ...], folder: str) -> bool:
    if name == "ctypes.dlsym":
        return str(details[1]).startswith("rename")
    if name == "open":
        flags = details[2] if isinstance(details[2], int) else 0
        return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) and _below(details[0], folder)
    return name in EVENTS and any(_below(detail, folder) for detail in details[:2])


def _below(path: object, folder: str) -> bool:
    if not isinstance(path, str | bytes | os.PathLike):
        return False
    name = os.fsdecode(path)
    return name.startswith(folder) or not os.path.isabs(name)


if __name__ == "__main__":
    sys.exit(main())
