"""Reading and writing safetensors files, single or sharded, without holding a tensor in memory.

The format is eight bytes of header length, a JSON header, and the tensors' bytes (https://github.com/huggingface/safetensors, "Format"). Our own reader,
because the usual one maps the whole file, and its mapped pages count as resident memory.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unipixel_jax.errors import UserError

from .tensors import DTYPES, Tensor

SINGLE = "model.safetensors"
"""A whole checkpoint in one file."""

INDEX = "model.safetensors.index.json"
"""Which tensor is in which shard."""

MAX_HEADER = 100_000_000
"""The format's own limit on the header, in bytes."""


@dataclass(frozen=True)
class TensorFile:
    """One file's tensors, in the order in which they lie in it, and the strings of its `__metadata__`."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def read_safetensors(path: Path) -> TensorFile:
    """The tensors of one file; only its header is read.

    Raises:
        UserError: not a safetensors file, a truncated one, or one with a dtype we do not know.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(MAX_HEADER, size - 8):
            raise UserError(f"{path} is no safetensors file, or its header is cut off ({size} bytes in all); copy it again")
        raw = file.read(length)
    try:
        header = json.loads(raw)
        metadata = header.pop("__metadata__", {})
        tensors, end = {}, 0
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            tensors[name] = _entry(path, 8 + length, end, name, entry)
            end = entry["data_offsets"][1]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} has a damaged header ({error}); copy it again") from None
    if 8 + length + end != size:
        raise UserError(f"{path} has {size} bytes, its header promises {8 + length + end}: it is truncated or damaged, copy it again")
    return TensorFile(tensors, metadata)


def _entry(path: Path, base: int, expected_start: int, name: str, entry: Mapping[str, Any]) -> Tensor:
    start, end = entry["data_offsets"]
    shape = tuple(int(size) for size in entry["shape"])
    if entry["dtype"] not in DTYPES:
        raise UserError(f"{path}: {name} has dtype {entry['dtype']}, expected one of {', '.join(DTYPES)}")
    count = math.prod(shape) * DTYPES[entry["dtype"]].itemsize
    if (start, end) != (expected_start, expected_start + count) or min(shape, default=0) < 0:
        raise UserError(f"{path}: {name} lies at {start}..{end}, expected {expected_start}..{expected_start + count}: the header is damaged, copy it again")
    return Tensor.in_file(path, base + start, entry["dtype"], shape)


def read_index(path: Path) -> dict[str, list[str]]:
    """The shards that an index file (`*.index.json`) lists: file name to the tensors promised in it.

    Raises:
        UserError: not an index, or a shard is missing.
    """
    try:
        shards: dict[str, list[str]] = {}
        for name, file in json.loads(path.read_text())["weight_map"].items():
            shards.setdefault(str(file), []).append(name)
    except (ValueError, KeyError, AttributeError, TypeError):
        raise UserError(f"{path} is no index of shards (expected a JSON object with weight_map); copy it again") from None
    absent = sorted(file for file in shards if Path(file).name != file or not (path.parent / file).is_file())
    if absent:
        raise UserError(f"{path.parent} lacks {len(absent)} of {len(shards)} shards: {', '.join(absent[:20])}; copy the checkpoint again")
    return dict(sorted(shards.items()))


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write one file: the header, then each tensor in the given order, a block at a time.

    Args:
        path: the file to make.
        tensors: what to write.
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
    """Write a checkpoint: its files, and their index unless it is one `model.safetensors`.

    Args:
        directory: where to.
        tensors: what to write.
        files: file name to the tensors in it.
        metadata: file name to the strings for its `__metadata__`; {"format": "pt"} for a file that is not named.
    """
    for file, names in files.items():
        write_safetensors(directory / file, {name: tensors[name] for name in names}, metadata.get(file, {"format": "pt"}))
    if list(files) != [SINGLE]:
        total = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": {name: file for file, names in files.items() for name in names}}
        (directory / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def shard_names(count: int) -> list[str]:
    """File names of a checkpoint in `count` files, as transformers names them."""
    return [SINGLE] if count == 1 else [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]


def plan_shards(sizes: Mapping[str, int], limit: int) -> dict[str, list[str]]:
    """Cut tensors, in their order, into files of at most `limit` bytes (a larger tensor has a file of its own)."""
    shards: list[list[str]] = [[]]
    room = limit
    for name, size in sizes.items():
        if size > room and shards[-1]:
            shards.append([])
            room = limit
        shards[-1].append(name)
        room -= size
    return dict(zip(shard_names(len(shards)), shards, strict=True))
