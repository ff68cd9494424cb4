"""The replies of a judge, kept in a file that survives a kill."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import threading
from pathlib import Path
from types import TracebackType

from unipixel_jax.core.files import writable
from unipixel_jax.errors import UserError

MAX_KEPT = 1 << 28
"""The most bytes of a file of replies, which is held in memory; that of a whole benchmark has less than a megabyte."""
_LINE_START = b'{"request": "'
"""How each line of a file of replies begins."""


class KeptReplies:
    """A file of replies (JSON Lines), so that a benchmark which was stopped goes on without asking anything twice.

    Each reply is one write at the file's end, so that a process which is killed leaves whole lines and at most a half one, which is cut off when the file is
    opened again.
    A file is open in one process at a time; its methods may be called from several threads.
    """

    def __init__(self, path: str | Path) -> None:
        """Open the file, which need not exist.

        Raises:
            UserError: the file cannot be read or written, is in use, or holds something else.
        """
        self._path = writable(path)
        self._lock = threading.Lock()
        self._kept: dict[str, str] = {}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self._path, "a+b", buffering=0)  # noqa: SIM115  it stays open until __exit__
        except OSError as error:
            raise UserError(f"{path} cannot be opened ({error.strerror}): choose another file for the judge's replies") from None
        try:
            self._read()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> KeptReplies:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._lock:
            self._file.close()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, name: str) -> str | None:
        """Return the reply that was kept under a name, or None."""
        return self._kept.get(name)

    def add(self, name: str, reply: str) -> None:
        """Keep a reply.

        Raises:
            UserError: it cannot be written; nothing of it is left in the file.
        """
        line = json.dumps({"request": name, "reply": reply}).encode() + b"\n"
        with self._lock:
            size = os.fstat(self._file.fileno()).st_size
            try:
                if self._file.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as error:
                with contextlib.suppress(OSError):
                    self._file.truncate(size)
                raise UserError(f"{self._path} cannot be written ({error.strerror}): make room and start again; the replies in it are kept") from None
            self._kept[name] = reply

    def _read(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{self._path} is written by another process: wait for its end, or choose another file for the judge's replies") from None
        size = os.fstat(self._file.fileno()).st_size
        if size > MAX_KEPT:
            raise UserError(f"{self._path} has {size >> 20} MB, expected a file of replies, of at most {MAX_KEPT >> 20} MB: choose another file")
        self._file.seek(0)
        content = self._file.readall()
        whole = content.rfind(b"\n") + 1
        for number, line in enumerate(content[:whole].splitlines(), 1):
            try:
                entry = json.loads(line)
                name, reply = entry["request"], entry["reply"]
                if not isinstance(name, str) or not isinstance(reply, str):
                    raise TypeError
            except (ValueError, TypeError, KeyError, RecursionError):
                raise UserError(f"{self._path}, line {number}: expected a reply that was kept here; remove the line, or choose another file") from None
            self._kept[name] = reply
        if whole < len(content) and not content[whole:].startswith(_LINE_START[: len(content) - whole]):
            raise UserError(f"{self._path} holds something other than replies: choose another file for them")
        self._file.truncate(whole)
