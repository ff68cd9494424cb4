"""Bytes of arrays on their way from file to file, a block at a time, so that memory does not grow with the file."""

from __future__ import annotations

from collections.abc import Iterator
from io import FileIO
from pathlib import Path

import numpy as np

from unipixel_jax.errors import UserError

Blocks = Iterator[memoryview]
"""Consecutive bytes of an array in C order. A block is valid only until the next one is asked for."""

BLOCK_BYTES = 1 << 20
"""Size of one block: small enough to stay in the processor's cache between reading, checksum and writing."""


def read_file(path: Path, offset: int, count: int) -> Blocks:
    """Yield the bytes `offset` to `offset + count` of a file. They are read, not mapped, because mapped pages would count as resident memory.

    Raises:
        UserError: the file is missing or ends early.
    """
    buffer = memoryview(bytearray(min(count, BLOCK_BYTES)))
    with _opened(path, offset) as file:
        while count:
            block = _read(file, buffer[: min(count, len(buffer))], path, count)
            count -= len(block)
            yield block


def read_into(memory: memoryview, path: Path, offset: int) -> None:
    """Fill memory with the bytes of a file from `offset` on, without a buffer between, which would take longer than reading.

    Raises:
        UserError: the file is missing or ends early.
    """
    with _opened(path, offset) as file:
        while memory:
            memory = memory[len(_read(file, memory, path, len(memory))) :]


def _opened(path: Path, offset: int) -> FileIO:
    if not path.is_file():
        raise UserError(f"{path} is missing: the checkpoint is incomplete, copy it again")
    file = FileIO(path)
    file.seek(offset)
    return file


def _read(file: FileIO, memory: memoryview, path: Path, missing: int) -> memoryview:
    """Read as many bytes as come at once, and return the part of the memory that they fill."""
    got = file.readinto(memory)
    if not got:
        raise UserError(f"{path} ends {missing} bytes early: it is truncated, copy it again")
    return memory[:got]


def bytes_of(array: np.ndarray) -> memoryview:
    """Return a view of the bytes of a contiguous array, without a copy."""
    return array.reshape(-1).view(np.uint8).data
