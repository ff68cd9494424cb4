"""The journal of a run: a line for each sample that is done, so that a run that was killed goes on with nothing done twice and nothing lost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from unipixel_jax.core.files import drop_half_line, replacing, whole_lines
from unipixel_jax.errors import UserError


class Journal:
    """A file of JSON Lines: a header that says what run it is of, and for each sample its name, record and, where it failed, the reason.

    Args:
        path: the file; it is made if it does not exist.
        header: what tells this run from others.

    Raises:
        UserError: the file is of another run, or no journal.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path = path
        self.done: dict[str, dict[str, Any]] = {}
        self._file: BinaryIO | None = None
        if not path.exists():
            with replacing(path) as aside:
                aside.write_text(json.dumps(header, ensure_ascii=False) + "\n", encoding="utf-8")
            return
        drop_half_line(path)
        found, self.done = read_journal(path)
        if other := [name for name in header if found.get(name) != header[name]]:
            raise UserError(
                f"{path} is of a run with other {other[0]} ({str(found.get(other[0]))[:60]}, not {str(header[other[0]])[:60]}): "
                "choose another --out, or remove the folder to start anew"
            )

    def __enter__(self) -> Journal:
        self._file = open(self.path, "ab")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, name: str, record: Mapping[str, Any], reason: str = "") -> None:
        """Note that a sample is done; ``reason`` says why it failed."""
        assert self._file is not None, "the journal is open"
        line = {"sample": name, "record": dict(record)} | ({"reason": reason} if reason else {})
        self.done[name] = line
        self._file.write(json.dumps(line, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
        self._file.flush()


def read_journal(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The header of a journal, and its lines by the samples' names. A line that was not written to its end counts for nothing.

    Raises:
        UserError: it is no journal.
    """
    header: dict[str, Any] = {}
    done = {}
    for number, line in whole_lines(path):
        try:
            entry = json.loads(line)
            if number == 1:
                header = dict(entry)
            else:
                done[str(entry["sample"])] = entry
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(f"{path}, line {number}: it is no line of a journal: remove the folder to start anew") from None
    return header, done
