"""The outcome of a case, and whether that is a failure."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import stat
from dataclasses import dataclass
from pathlib import Path

from .case import PLACE, Case

OK, REFUSED, REPORTED = "ok", "refused", "reported"
"""Outcomes that are no failures: success; an error in one line, or wrong arguments; status 1 after a report of what is wrong with the files."""
FAILURES = ("unexpected", "traceback", "crash", "hang", "memory", "leftover", "destroyed", "noise")
"""Outcomes that are failures, in this order: a message that says 'should not happen'; a traceback or an unknown status; death by a signal; more time than the
limit; more memory than the limit; files or processes left behind; inputs or devices changed; an error in several lines, or beside lines of libraries."""

MAX_GROWTH = 2 << 30
_HARMLESS = re.compile(r"^(usage: |unipixel-jax.*: error: |[│╭╰─┬ ]|warning: |Warning: )")
Snapshot = dict[str, str]


@dataclass(frozen=True)
class Ended:
    """How the process of a case ended.

    Attributes:
        status: the status from ``os.waitpid``.
        seconds: seconds since the start of the command.
        growth: bytes of memory beyond those that making the inputs took.
        stopped: "hang" or "memory" where the process was killed for that; else empty.
        out, err: what it wrote to standard output and standard error.
        processes: whether processes that it started were still there a second after its end.
    """

    status: int
    seconds: float
    growth: int
    stopped: str
    out: str
    err: str
    processes: bool


def snapshot(folder: Path) -> Snapshot:
    """Return kind and content, as a text or a hash, of everything below a folder, by name."""
    return {str(path.relative_to(folder)): _describe(path) for path in sorted(folder.rglob("*"))}


def judge(ended: Ended, before: Snapshot, after: Snapshot, case: Case) -> tuple[str, str]:
    """Return the outcome's name, and for a failure what was seen.

    Args:
        ended: how the process ended.
        before: a snapshot of the watched folder before the command.
        after: a snapshot of the watched folder after the command.
        case: the case, which says what the command may write.
    """
    code = os.waitstatus_to_exitcode(ended.status)
    errors = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    changed = [name for name, what in before.items() if after.get(name) != what and not _within(name, case.outputs)]
    refused = code != 0 and bool(errors)
    allowed = case.kept if refused else case.outputs
    free = case.anywhere and not refused
    left = [name for name in after if name not in before and (_temporary(name) or (not (free and name.startswith("a/")) and not _within(name, allowed)))]
    text = ended.err + ended.out
    if ended.stopped:
        return ended.stopped, f"{ended.seconds:.0f} s, {ended.growth >> 20} MB"
    if ended.growth > MAX_GROWTH:
        return "memory", f"{ended.growth >> 20} MB"
    if code < 0:
        return "crash", f"{signal.Signals(-code).name}: {_last(ended.err)}"
    if "Traceback (most recent call last)" in text or "Exception ignored in" in text or code not in (0, 1, 2):
        return "traceback", f"status {code}: {_last(ended.err)}"
    if "should not happen" in text:
        return "unexpected", _last(ended.err)
    if changed:
        return "destroyed", ", ".join(changed[:5])
    if ended.processes or left:
        return "leftover", "processes" if ended.processes else ", ".join(left[:5])
    odd = [line for line in ended.err.splitlines() if line.strip() and not line.startswith("error: ") and not _HARMLESS.match(line)]
    if refused and (len(errors) > 1 or (odd and not case.talks)):
        return "noise", (odd or errors)[0][:200]
    return (OK if code == 0 else REFUSED if refused or code == 2 else REPORTED), ""


def _within(name: str, places: tuple[str, ...]) -> bool:
    return any(name == f"{PLACE}/{place}" or name.startswith(f"{PLACE}/{place}/") for place in places)


def _temporary(name: str) -> bool:
    return any(part.startswith(".unipixel-") or ".partial" in part or part.endswith((".part", ".tmp")) for part in name.split("/"))


def _last(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no words"


def _describe(path: Path) -> str:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return f"link to {os.readlink(path)}"
    if not stat.S_ISREG(mode):
        return f"of kind {stat.S_IFMT(mode):o}"
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()
