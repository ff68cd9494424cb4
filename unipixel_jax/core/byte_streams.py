"""Bytes of arrays on their way from file to file, a block at a time, so that memory does not grow with the file."""

from __future__ import annotations

from collections.abc import Iterator
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
    if not path.is_file():
        raise UserError(f"{path} is missing: the checkpoint is incomplete, copy it again")
    with open(path, "rb", buffering=0) as file:
        file.seek(offset)
        while count:
            got = file.readinto(buffer[: min(count, len(buffer))])
            if not got:
                raise UserError(f"{path} ends {count} bytes early: it is truncated, copy it again")
            count -= got
            yield buffer[:got]


def bytes_of(array: np.ndarray) -> memoryview:
    """Return a view of the bytes of a contiguous array, without a copy."""
    return array.reshape(-1).view(np.uint8).data
