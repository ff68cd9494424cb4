"""Writing files so that they are complete or absent, and reading files of unknown origin without harm to the reading process."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import math
import os
import re
import shutil
import socket
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unipixel_jax.errors import UserError

PARAMS = "params"
"""The folder of arrays in the directory of a converted model."""

MAX_DEPTH = 200
"""The largest depth of folders that is made. Python's function that makes folders calls itself for each of them."""

MAX_JSON_BYTES = 64 << 20
"""The largest size of a JSON file of settings, in bytes. Python takes up to 25 times a file's size in memory, and a tokenizer of 150,000 tokens has 11 MB."""

_PREFIX = ".unipixel-"
_NAME = re.compile(r"\.unipixel-([0-9a-f]{8})-(\d+)-\d+\.part")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
"""A surrogate: half a character of UTF-16, which JSON can spell alone, and which no text in UTF-8 can hold."""

_numbers = itertools.count()


def require_regular_file(path: str | Path, expected: str = "expected a file") -> None:
    """Check that a path can be opened for reading without waiting for ever, which a pipe or a device might.

    Args:
        path: the path of the file; links are followed.
        expected: the end of the message, which says what should be there and what to do.

    Raises:
        UserError: nothing is there, or something other than a regular file.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        absent = isinstance(error, FileNotFoundError | NotADirectoryError)
        raise UserError(f"{path} {'does not exist' if absent else f'cannot be read ({_reason(error)})'}: {expected}") from None
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
        raise UserError(f"{path} is {kind}: {expected}")


def read_json(path: str | Path, advice: str = "copy it again", most: int = MAX_JSON_BYTES) -> Any:
    """Return the content of a JSON file in UTF-8, with or without a byte order mark. All of its numbers are finite, and all texts can be encoded.

    Args:
        path: the path of the file.
        advice: the end of error messages, which says what to do.
        most: the largest accepted size in bytes.

    Raises:
        UserError: the file is missing, no regular file, too large, not UTF-8, not JSON, nested too deeply, or has a number that is not finite.
    """
    require_regular_file(path, advice)
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size > most:
                raise UserError(f"{path} is larger than {most >> 20} MB, which no file of its kind is: {advice}")
            content = file.read()
        text = content.decode("utf-8-sig")
        found = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
        if _SURROGATE.search(text):
            json.dumps(found, ensure_ascii=False).encode()
        return found
    except OSError as error:
        raise UserError(f"{path} cannot be read ({_reason(error)}): {advice}") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply for JSON that a program wrote: {advice}") from None
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): {advice}") from None


def read_json_object(path: str | Path, advice: str = "copy it again", most: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Return the content of a JSON file that holds an object; arguments as in ``read_json``.

    Raises:
        UserError: as ``read_json``, or the file holds something other than an object.
    """
    found = read_json(path, advice, most)
    if not isinstance(found, dict):
        raise UserError(f"{path} holds a {type(found).__name__}, expected a JSON object: {advice}")
    return found


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` to write to. It is renamed to ``path`` where the body ends well, and removed otherwise.

    Missing folders are made. The temporary name is short and keeps the suffix, by which writers choose their format. If ``path`` is a link, the file that it
    names is replaced. Temporary files that killed processes left in the folder are removed.

    Raises:
        UserError: the file cannot be written, or the path names a folder, pipe or device.
    """
    target = writable(path)
    aside = aside_of(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(target.parent)
        yield aside
        os.replace(aside, target)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({_reason(error)}): choose a place with room where you may write") from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()


def writable(path: str | Path) -> Path:
    """Return the absolute path, with links followed, of a file that may be written or replaced. Commands call it before they begin their work.

    Raises:
        UserError: the path names a folder, pipe or device, or a place where no file can be made.
    """
    try:
        target = Path(os.path.realpath(path))
        if target.is_symlink() or (target.exists() and not target.is_file()):
            kind = "a folder" if target.is_dir() else "a link in a circle" if target.is_symlink() else "a pipe, socket or device"
            raise UserError(f"{path} is {kind}, expected the name of a file to write")
        place = next(p for p in target.parents if p.exists())
    except (OSError, ValueError) as error:  # ValueError: a null character
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} cannot be written ({_reason(error)}): choose another name") from None
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise UserError(f"{path} cannot be written ({place} is {'read-only' if place.is_dir() else 'not a folder'}): choose another place")
    require_shallow(target)
    if len(os.fsencode(target.name)) > 255:
        raise UserError(f"{path} cannot be written (its name has {len(os.fsencode(target.name))} bytes): choose a name of at most 255 bytes")
    return target


def require_shallow(path: Path) -> None:
    """Check that a path does not lie in too many folders.

    Raises:
        UserError: it lies in more than ``MAX_DEPTH`` folders.
    """
    if len(path.parents) > MAX_DEPTH:
        raise UserError(f"{str(path)[:60]}... lies in {len(path.parents)} folders, expected at most {MAX_DEPTH}: choose another place")


def drop_half_line(path: str | Path) -> None:
    """Remove what follows the last end of a line of a file, which a process that was killed wrote in part."""
    with open(path, "r+b") as file:
        keep = file.seek(0, os.SEEK_END)
        while keep:
            start = max(keep - (1 << 16), 0)
            file.seek(start)
            found = file.read(keep - start).rfind(b"\n")
            if found >= 0:
                file.truncate(start + found + 1)
                return
            keep = start
        file.truncate(0)


def whole_lines(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a file with their numbers from 1, without a last one that was not written to its end."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            yield number, line


def aside_of(target: Path) -> Path:
    """Return a path beside ``target`` that no other process uses. Its name tells ``remove_abandoned`` which process made it."""
    suffix = target.suffix if len(target.suffix) <= 16 and target.suffix.isascii() else ""
    return target.with_name(f"{_PREFIX}{_host()}-{os.getpid()}-{next(_numbers)}.part{suffix}")


@functools.lru_cache(maxsize=64)
def remove_abandoned(folder: Path) -> None:
    """Remove the temporary files and folders that killed processes of this machine left in a folder. A process looks for them once in each folder."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            owner = _NAME.match(entry.name)
            if owner is None or owner[1] != _host() or Path(f"/proc/{owner[2]}").exists():
                continue
            with contextlib.suppress(OSError):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    os.unlink(entry.path)


@functools.cache
def _host() -> str:
    """Return a short name of this machine: machines may share a folder, and the number of a process means nothing on another machine."""
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number in JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is too large")
    return value
