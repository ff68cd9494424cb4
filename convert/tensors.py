"""Tensors of checkpoints, which are read only when they are asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from unipixel_jax.core.byte_streams import Blocks, bytes_of, read_file

DTYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "F32": np.dtype(np.float32),
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F64": np.dtype(np.float64),
    "C64": np.dtype(np.complex64),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
"""Every dtype that we read, under the name that safetensors files give it."""

WEIGHT_DTYPES = ("BF16", "F16", "F32", "F64")
"""The dtypes that a weight of the model may have."""

CODES: Mapping[np.dtype[Any], str] = {dtype: code for code, dtype in DTYPES.items()}
"""The names that safetensors files give numpy dtypes."""


@dataclass(frozen=True)
class Tensor:
    """A tensor's dtype and shape, and a function that reads its bytes.

    Attributes:
        dtype: a key of `DTYPES`.
        shape: the shape, as torch has it.
        blocks: yields the bytes in C order, each time anew; a block is valid until the next one is asked for.
    """

    dtype: str
    shape: tuple[int, ...]
    blocks: Callable[[], Blocks]

    @classmethod
    def in_file(cls, path: Path, offset: int, dtype: str, shape: tuple[int, ...]) -> Tensor:
        """Return a tensor whose bytes lie side by side in a file, from `offset` on."""
        return cls(dtype, shape, partial(read_file, path, offset, math.prod(shape) * DTYPES[dtype].itemsize))

    @classmethod
    def computed(cls, dtype: str, shape: tuple[int, ...], compute: Callable[[], np.ndarray]) -> Tensor:
        """Return a tensor whose values `compute` makes when they are asked for; they are cast to `dtype`."""

        def blocks() -> Blocks:
            array = np.ascontiguousarray(compute(), dtype=DTYPES[dtype]).reshape(shape)
            yield bytes_of(array)

        return cls(dtype, shape, blocks)

    @property
    def count(self) -> int:
        """The number of values."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The number of bytes."""
        return self.count * DTYPES[self.dtype].itemsize

    def load(self) -> np.ndarray:
        """Read the values as an array of the tensor's shape and dtype."""
        array = np.empty(self.shape, DTYPES[self.dtype])
        target = bytes_of(array)
        start = 0
        for block in self.blocks():
            target[start : start + len(block)] = block
            start += len(block)
        return array

    def cast(self, dtype: str) -> Tensor:
        """Return the tensor in another dtype; values are rounded to nearest even when they are read."""
        return self if dtype == self.dtype else Tensor.computed(dtype, self.shape, self.load)
