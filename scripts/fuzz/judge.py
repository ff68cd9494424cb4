"""How a case ended, and whether it may end so."""

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
"""It worked; an error in one line, or wrong arguments; status 1 after a report of what is wrong with the files."""
FAILURES = ("unexpected", "traceback", "crash", "hang", "memory", "leftover", "destroyed", "noise")
"""'Should not happen'; a traceback or an odd status; a signal; longer than the limit; grown by more than the limit; files or processes left; inputs or
devices changed; an error in more than one line, or words of libraries."""

MAX_SECONDS = 30.0
MAX_GROWTH = 2 << 30
_HARMLESS = re.compile(r"^(usage: |unipixel-jax.*: error: |[│╭╰─┬ ]|warning: |Warning: )")
Snapshot = dict[str, str]


@dataclass(frozen=True)
class Ended:
    """A case's end.

    Attributes:
        status: as ``os.waitpid`` gives it.
        seconds: from the start of the command.
        growth: bytes of memory beyond those that the inputs' making took.
        stopped: "hang" or "memory" where it was killed for that.
        out, err: what it wrote.
        processes: whether processes of its own live on.
    """

    status: int
    seconds: float
    growth: int
    stopped: str
    out: str
    err: str
    processes: bool


def snapshot(folder: Path) -> Snapshot:
    """Everything below a folder by its name: kind and content."""
    return {str(path.relative_to(folder)): _describe(path) for path in sorted(folder.rglob("*"))}


def judge(ended: Ended, before: Snapshot, after: Snapshot, case: Case) -> tuple[str, str]:
    """The outcome's name, and for a failure what was seen.

    Args:
        ended: the end.
        before: what is watched, before the command.
        after: and after it.
        case: says what it may write.
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
