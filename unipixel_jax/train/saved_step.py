"""The file in which a step whose loss or gradients were not finite is kept. It consists of arrays and JSON, so that reading it runs no code of the file.

The file is a zip of numpy's arrays (numpy.savez, uncompressed), one of which is the text of a JSON object: the fields of ``SavedStep``, with ``{"array": N}``
in the place of an array.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from unipixel_jax.batch import TrainBatch
from unipixel_jax.config import UniPixelConfig
from unipixel_jax.core.files import replacing, require_regular_file
from unipixel_jax.errors import UserError
from unipixel_jax.train.config import TrainConfig

MAX_TEXT = 8 << 20
"""The largest size of the JSON part in bytes; names of samples are most of it."""

_TEXT, _EXPECTED = "about", "expected the file that a stopped run named"


@dataclass(frozen=True)
class SavedStep:
    """The inputs of a step, without the weights.

    Attributes:
        step: the number of optimisation steps before it.
        total: the number of steps of the whole training.
        start: the converted directory that training started from.
        config: the run's configuration.
        model_config: the model's configuration.
        batches: the batches whose gradients make the step.
    """

    step: int
    total: int
    start: str
    config: TrainConfig
    model_config: UniPixelConfig
    batches: tuple[TrainBatch, ...]


def write_saved_step(path: Path, kept: SavedStep) -> None:
    """Write a step to a file, which is complete or absent afterwards.

    Raises:
        UserError: the file cannot be written.
    """
    arrays: list[np.ndarray] = []
    text = json.dumps(_plain(kept, arrays)).encode()
    stored = {str(number): array.view(np.uint16) if array.dtype == ml_dtypes.bfloat16 else array for number, array in enumerate(arrays)}
    with replacing(path) as aside, open(aside, "wb") as file:
        np.savez(file, **{_TEXT: np.frombuffer(text, np.uint8)}, **stored)  # type: ignore[arg-type]


def read_saved_step(path: Path) -> SavedStep:
    """Read a file that ``write_saved_step`` wrote.

    Raises:
        UserError: the file is damaged, or something else.
    """
    require_regular_file(path, _EXPECTED)
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        packed = any(info.compress_type != zipfile.ZIP_STORED for info in members.values())
        if packed or sum(info.file_size for info in members.values()) > path.stat().st_size or members[_TEXT].file_size > MAX_TEXT:
            raise ValueError("its parts are larger than the file")
        with np.load(path, allow_pickle=False) as stored:
            return _built(SavedStep, json.loads(stored[_TEXT].tobytes()), stored)
    except Exception as error:  # zipfile, numpy and the configuration refuse damaged files in many ways
        raise UserError(f"{path} cannot be read ({str(error)[:300] or type(error).__name__}): {_EXPECTED}") from None


def _plain(value: Any, arrays: list[np.ndarray]) -> Any:
    """Return a value as plain JSON. Its arrays are appended to ``arrays``, and their numbers stand in their places."""
    if isinstance(value, np.ndarray):
        arrays.append(value)
        return {"array": len(arrays) - 1}
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name), arrays) for field in dataclasses.fields(value)}
    return [_plain(item, arrays) for item in value] if isinstance(value, tuple) else value


def _built(kind: Any, value: Any, arrays: Any) -> Any:
    """Return the value of type ``kind`` that ``_plain`` made plain JSON of.

    Raises:
        ValueError: the JSON does not fit the type.
    """
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind, include_extras=True)
        names = [field.name for field in dataclasses.fields(kind)]
        if not isinstance(value, dict) or value.keys() != set(names):
            raise ValueError(f"{getattr(kind, '__name__', kind)} has other fields in this version")
        return kind(**{name: _built(hints[name], value[name], arrays) for name in names})  # type: ignore[operator]
    if origin is types.UnionType:
        return None if value is None else _built(inner[0], value, arrays)
    if origin is tuple and isinstance(value, list):
        kinds = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        return tuple(_built(kind, item, arrays) for kind, item in zip(kinds, value, strict=True))
    if origin is typing.Annotated and isinstance(value, dict):
        return _array(inner[1], arrays[str(value["array"])])
    right = value in inner if origin is typing.Literal else isinstance(value, (int, float) if kind is float else kind)
    if not right:
        raise ValueError(f"{str(value)[:60]!r} is no {kind}")
    return value


def _array(scalar: Any, array: np.ndarray) -> np.ndarray:
    """Return an array whose dtype is checked against the declared kind of numbers; bfloat16 is stored in the file as its bits."""
    if scalar is np.floating and array.dtype == np.uint16:
        return array.view(ml_dtypes.bfloat16)
    if not issubclass(array.dtype.type, scalar):
        raise ValueError(f"an array of {array.dtype} in the place of {scalar.__name__}")
    return array
