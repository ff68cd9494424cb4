"""A reader and writer of safetensors files, single or sharded, which never hold a whole tensor in memory.

The format is eight bytes of header length, a JSON header, and the tensors' bytes (https://github.com/huggingface/safetensors, "Format"). The package
safetensors is not used for reading, because it maps the whole file, and mapped pages count as resident memory.
"""

from __future__ import annotations

import json
import math
import os
import reprlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unipixel_jax.core.files import read_json_object, require_regular_file
from unipixel_jax.errors import UserError

from .tensors import DTYPES, Tensor

SINGLE = "model.safetensors"
"""The name of the file of a checkpoint that is in one file."""

INDEX = "model.safetensors.index.json"
"""The name of the file that says which tensor is in which shard."""

MAX_HEADER = 25_000_000
"""The most bytes of a header that are accepted. The format allows four times as many, but parsed JSON takes up to 25 times its size in memory, and the header
of the 3B model has under 200 KB."""

MAX_AXES = 64
"""The most axes of a tensor that are accepted, which is torch's own limit."""

_COPY = "copy it again"


@dataclass(frozen=True)
class TensorFile:
    """One file's tensors, in the order in which they lie in it, and the strings of its `__metadata__`."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def read_safetensors(path: Path) -> TensorFile:
    """Return the tensors of one file; only its header is read.

    Raises:
        UserError: the file is no safetensors file, is truncated or damaged, or has an unknown dtype.
    """
    require_regular_file(path, _COPY)
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(MAX_HEADER, size - 8):
            raise UserError(f"{path} is no safetensors file, or its header is cut off ({size} bytes in all); {_COPY}")
        raw = file.read(length)
    try:
        header = json.loads(raw)
        metadata = header.pop("__metadata__", {})
        entries = {name: _Entry.read(entry) for name, entry in header.items()}
        if not all(isinstance(text, str) for text in metadata.values()):
            raise TypeError("metadata that are no strings")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} has a damaged header ({error}); {_COPY}") from None
    tensors, end = {}, 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        tensors[name] = _tensor(path, 8 + length, end, name, entry)
        end = entry.end
    if 8 + length + end != size:
        raise UserError(f"{path} has {size} bytes, its header promises {8 + length + end}: it is truncated or damaged, {_COPY}")
    return TensorFile(tensors, metadata)


@dataclass(frozen=True)
class _Entry:
    """A header's entry: a tensor's dtype and shape, and where its bytes start and end in the data."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> _Entry:
        """Read a header's entry.

        Raises:
            TypeError, KeyError, ValueError: the entry has another form.
        """
        (start, end), shape, dtype = raw["data_offsets"], raw["shape"], raw["dtype"]
        if not all(type(number) is int and 0 <= number < 1 << 63 for number in (start, end, *shape[:MAX_AXES])):
            raise TypeError(f"shapes and offsets must be whole numbers, not {reprlib.repr(shape)} at {reprlib.repr((start, end))}")
        if not isinstance(dtype, str) or len(shape) > MAX_AXES:
            raise TypeError(f"a tensor of {len(shape)} axes and dtype {reprlib.repr(dtype)}")
        return cls(dtype, tuple(shape), start, end)


def _tensor(path: Path, base: int, expected_start: int, name: str, entry: _Entry) -> Tensor:
    if entry.dtype not in DTYPES:
        raise UserError(f"{path}: {name} has dtype {entry.dtype}, expected one of {', '.join(DTYPES)}")
    expected = (expected_start, expected_start + math.prod(entry.shape) * DTYPES[entry.dtype].itemsize)
    if (entry.start, entry.end) != expected:
        raise UserError(f"{path}: {name} lies at {entry.start}..{entry.end}, expected {expected[0]}..{expected[1]}: the header is damaged, {_COPY}")
    return Tensor.in_file(path, base + entry.start, entry.dtype, entry.shape)


def is_shard_name(name: object, suffix: str = ".safetensors") -> bool:
    """Return whether this is the name of a file of weights without a folder, so that it cannot lead elsewhere."""
    return isinstance(name, str) and name.endswith(suffix) and name != suffix and name.isprintable() and not set(name) & set("/\\:") and len(name) <= 200


def read_index(path: Path, suffix: str = ".safetensors") -> dict[str, list[str]]:
    """Return the shards that an index file (`*.index.json`) lists: file name to the names of its tensors.

    Args:
        path: the index.
        suffix: the ending that the shards' names must have.

    Raises:
        UserError: the file is no index, or a shard is missing.
    """
    placed = read_json_object(path, "copy the checkpoint again").get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise UserError(f"{path} is no index of shards (expected a JSON object with weight_map); copy the checkpoint again")
    unsafe = [file for file in placed.values() if not is_shard_name(file, suffix)]
    if unsafe:
        raise UserError(f"{path} names the shard {reprlib.repr(unsafe[0])}, expected a file beside it that ends in {suffix}; copy the checkpoint again")
    shards: dict[str, list[str]] = {}
    for name, file in placed.items():
        shards.setdefault(file, []).append(name)
    absent = sorted(file for file in shards if not os.path.isfile(path.parent / file))
    if absent:
        raise UserError(f"{path.parent} lacks {len(absent)} of {len(shards)} shards: {', '.join(absent[:20])}; copy the checkpoint again")
    return dict(sorted(shards.items()))


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write one file: the header, then each tensor in the given order, a block at a time.

    Args:
        path: the file to make.
        tensors: the tensors to write, in this order.
        metadata: strings for `__metadata__`; torch checkpoints carry {"format": "pt"}.

    Raises:
        ValueError: a tensor yields another number of bytes than its shape and dtype say.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [end, end + tensor.nbytes]}
        end += tensor.nbytes
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        for name, tensor in tensors.items():
            start = file.tell()
            file.writelines(tensor.blocks())
            if file.tell() - start != tensor.nbytes:
                raise ValueError(f"{name}: wrote {file.tell() - start} bytes, expected {tensor.nbytes}")


def write_shards(directory: Path, tensors: Mapping[str, Tensor], files: Mapping[str, Sequence[str]], metadata: Mapping[str, Mapping[str, str]]) -> None:
    """Write a checkpoint's files, and their index unless there is only `model.safetensors`.

    Args:
        directory: the directory to write to, which must exist.
        tensors: the tensors to write, by name.
        files: file name to the names of the tensors in it.
        metadata: file name to the strings for its `__metadata__`; {"format": "pt"} for a file that is not named.
    """
    for file, names in files.items():
        write_safetensors(directory / file, {name: tensors[name] for name in names}, metadata.get(file, {"format": "pt"}))
    if list(files) != [SINGLE]:
        total = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": {name: file for file, names in files.items() for name in names}}
        (directory / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def shard_names(count: int) -> list[str]:
    """Return the file names of a checkpoint in `count` files, as transformers names them."""
    return [SINGLE] if count == 1 else [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]


def plan_shards(sizes: Mapping[str, int], limit: int) -> dict[str, list[str]]:
    """Divide tensors, in their order, into files of at most `limit` bytes; a larger tensor has a file of its own.

    Args:
        sizes: bytes of each tensor, by name.
        limit: bytes.

    Returns:
        File name to the names of its tensors.
    """
    shards: list[list[str]] = [[]]
    room = limit
    for name, size in sizes.items():
        if size > room and shards[-1]:
            shards.append([])
            room = limit
        shards[-1].append(name)
        room -= size
    return dict(zip(shard_names(len(shards)), shards, strict=True))
