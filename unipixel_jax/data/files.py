"""Files of data sets, read with errors that name them: JSON, pickles of plain values, folders and label images."""

from __future__ import annotations

import contextlib
import json
import pickle
from collections import OrderedDict
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unipixel_jax.errors import UserError

_opened: ContextVar[list[Path] | None] = ContextVar("_opened", default=None)


@contextlib.contextmanager
def note_files() -> Iterator[list[Path]]:
    """The JSON files and pickles that this thread opens within, in order, so that an error in their content can name them."""
    paths: list[Path] = []
    token = _opened.set(paths)
    try:
        yield paths
    finally:
        _opened.reset(token)


def read_json(path: str | Path) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: it is missing or broken.
    """
    with _open_binary(Path(path)) as file:
        content = file.read()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = content.decode("cp1252", "replace")  # a few of ReasonSeg's files were written on Windows
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): copy it again") from error


def read_pickle(path: str | Path) -> Any:
    """The content of a pickle that holds plain values only (numbers, words, lists, dictionaries); others could run code and are refused.

    Raises:
        UserError: it is missing or broken, or holds anything else.
    """
    with _open_binary(Path(path)) as file:
        try:
            return _PlainUnpickler(file).load()
        except UserError as error:
            raise UserError(f"{path} {error}") from error
        except Exception as error:  # a broken pickle can raise nearly anything
            raise UserError(f"{path} is not a pickle or is broken ({error}): copy it again") from error


def list_files(folder: str | Path, suffix: str) -> list[Path]:
    """The files of a folder whose names end so, by name.

    Raises:
        UserError: there is no such folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"{root} is missing: put the data set there, or give another data root")
    return sorted(p for p in root.iterdir() if p.suffix == suffix and not p.name.startswith("."))


def read_labels(path: str | Path) -> NDArray[np.integer]:
    """A picture whose pixels are numbers of objects or classes; in a picture with a palette, the numbers of the colours.

    Returns:
        [H, W], of the file's integer type.

    Raises:
        UserError: it is missing or broken, or has colours.
    """
    try:
        with Image.open(path) as image:
            labels = np.asarray(image)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: expected a picture of masks, put it there") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise UserError(f"{path} is not a picture or is broken ({error}): copy it again") from error
    if labels.ndim != 2:
        raise UserError(f"{path} has {labels.shape[2]} channels, expected one: a picture of masks holds a number at each pixel, not a colour")
    return labels.astype(np.uint8) if labels.dtype == np.bool_ else labels


class _PlainUnpickler(pickle.Unpickler):
    """Refuses what is looked up by its name, classes and functions alike, save the two by which old protocols write bytes and ordered dictionaries."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return lambda text, _: text.encode("latin1")
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        raise UserError(f"asks for {module}.{name}, expected plain values only: it is of another kind, or not to be trusted")


def _open_binary(path: Path) -> Any:
    if (opened := _opened.get()) is not None:
        opened.append(path)
    try:
        return path.open("rb")
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: put the data set there, or give another data root") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
