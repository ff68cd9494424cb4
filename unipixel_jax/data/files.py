"""Files of data sets, read with errors that name them: text, JSON, pickles of plain values, folders and label images."""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import os
import pickle
import re
import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from unipixel_jax.core.files import MAX_JSON_BYTES, require_regular_file
from unipixel_jax.core.pickles import scan_pickle
from unipixel_jax.errors import UserError
from unipixel_jax.processing.images import LABELS, Content, NotAnImage, open_image

_MEMORY_PER_BYTE = 4
"""Bytes of memory that reading takes for each byte of a large file: for its bytes, its text, and the values."""

_opened: ContextVar[list[Path] | None] = ContextVar("_opened", default=None)


@contextlib.contextmanager
def note_files() -> Iterator[list[Path]]:
    """Note the JSON files and pickles that this thread opens within the block, in order, so that an error in their content can name them."""
    paths: list[Path] = []
    token = _opened.set(paths)
    try:
        yield paths
    finally:
        _opened.reset(token)


def read_json(path: str | Path, fallback: str | None = None) -> Any:
    """The content of a JSON file of a data set, which may be larger than settings are. Numbers may be NaN or infinite; whoever uses them checks them.

    Args:
        path: the file.
        fallback: an encoding for a file that is not in UTF-8; None refuses such a file.

    Raises:
        UserError: it is missing, no regular file, broken, nested too deeply, in another encoding, or too large for the memory.
    """
    text = read_text(path, fallback)
    try:
        return json.loads(text)
    except RecursionError:
        raise UserError(f"{path} is nested too deeply for JSON that a program wrote: copy it again") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): copy it again") from error


def read_text(path: str | Path, fallback: str | None = None) -> str:
    """A text file in UTF-8, with or without a byte order mark. Arguments and errors are those of ``read_json``."""
    with _open_binary(Path(path)) as file:
        content: bytes = file.read()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in content:
        raise UserError(f"{path} is not text in UTF-8 (it has null characters or the mark of UTF-16): save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if fallback is None:
            raise UserError(f"{path} is not text in UTF-8 ({error}): save it as UTF-8") from None
        return content.decode(fallback, "replace")


def read_pickle(path: str | Path) -> Any:
    """The content of a pickle that holds plain values only (numbers, words, lists, dictionaries); others could run code and are refused.

    Raises:
        UserError: it is missing or broken, or holds anything else.
    """
    with _open_binary(Path(path)) as file:
        content = scan_pickle(file, path)
    try:
        return _PlainUnpickler(io.BytesIO(content)).load()
    except UserError as error:
        raise UserError(f"{path} {error}") from error
    except Exception as error:  # a broken pickle can raise nearly anything
        raise UserError(f"{path} is not a pickle or is broken ({error}): copy it again") from error


def list_files(folder: str | Path, suffix: str) -> list[Path]:
    """The files of a folder whose names end in ``suffix``, sorted by name.

    Raises:
        UserError: there is no such folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"{root} does not exist: put the data set there, or give another data root")
    return sorted(p for p in root.iterdir() if p.suffix == suffix and not p.name.startswith("."))


def read_labels(source: str | Path | Content) -> NDArray[np.integer]:
    """Read an image whose pixels are numbers of objects or classes; those of an image with a palette are the numbers of its colours.

    Returns:
        [H, W], of the file's integer type.

    Raises:
        UserError: it is missing, broken, or in a format that does not keep every pixel as it was, such as JPEG; or has colours, or numbers with fractions.
    """
    try:
        with open_image(source, LABELS) as image:
            labels = np.asarray(image)
    except NotAnImage:
        raise UserError(f"{source} is no image of masks: expected {', '.join(LABELS)}, which keep every pixel as it is: save it as PNG") from None
    if labels.ndim == 3 and isinstance(source, Content) and (labels == labels[..., :1]).all():  # as tensorflow-datasets may have stored it again
        labels = labels[..., 0]
    if labels.ndim != 2:
        raise UserError(f"{source} has {labels.shape[2]} channels, expected one: an image of masks holds a number at each pixel, not a colour")
    if labels.dtype.kind not in "iub":
        raise UserError(f"{source} holds numbers with fractions, expected whole numbers of objects or classes: save it as PNG")
    return labels.astype(np.uint8) if labels.dtype == np.bool_ else labels


class _PlainUnpickler(pickle.Unpickler):
    """Refuses whatever a pickle looks up by name, classes and functions alike, except the two by which old protocols write bytes and ordered dictionaries.

    The size of what these two make is counted, since a pickle can call them with one long value again and again.
    """

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self._room = len(file.getbuffer())

    def find_class(self, module: str, name: str) -> Any:
        # New functions each time, since a pickle may change what it is given.
        if (module, name) == ("_codecs", "encode"):
            return lambda text, _: self._counted(text).encode("latin1")
        if (module, name) == ("collections", "OrderedDict"):
            return lambda pairs=(): self._ordered(pairs)
        raise UserError(f"asks for {module}.{name}, expected plain values only: it is of another kind, or not to be trusted")

    def _ordered(self, pairs: Any) -> OrderedDict[Any, Any]:
        if any(not isinstance(key, str | bytes | int) for key, _ in self._counted(pairs)):
            raise UserError("has a dictionary with other keys than words and numbers, expected plain values only: copy it again")
        return OrderedDict(pairs)

    def _counted(self, items: Any) -> Any:
        self._room -= len(items)
        if self._room < 0:
            raise UserError("makes values larger than itself, expected plain values only: it is not to be trusted")
        return items


def _open_binary(path: Path) -> IO[bytes]:
    require_regular_file(path, "put the data set there, or give another data root")
    if (opened := _opened.get()) is not None:
        opened.append(path)
    try:
        file = path.open("rb")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): change its permissions, or copy it again") from error
    size, room = os.fstat(file.fileno()).st_size, _available_memory()
    if size > MAX_JSON_BYTES and size * _MEMORY_PER_BYTE > room:
        file.close()
        raise UserError(f"{path} has {size >> 20:,} MB, too many for the {room >> 20:,} MB of memory that are free: use a machine with more, or a part of it")
    return file


def _available_memory() -> int:
    """Bytes that programs can still take; where the system does not tell, more than any file has."""
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
    except OSError:
        found = None
    return int(found[1]) << 10 if found else sys.maxsize
