"""Reading arrays from disk: from a folder of Zarr arrays as Orbax writes it without OCDBT, or from the same folder packed into one zip file.

An uncompressed Zarr v2 chunk is the array's bytes in C order (Zarr storage specification, version 2), so a part of an array is a range of a file. Opening a
checkpoint reads the headers and compares them with the sizes of the files; an array is read when it is asked for. The module needs numpy only.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from unipixel_jax.core.byte_streams import Blocks, bytes_of, read_file, read_into
from unipixel_jax.core.files import read_json_object, replacing
from unipixel_jax.core.trees import KeyPath, parse
from unipixel_jax.errors import UserError

ALIGNMENT = 64
"""The alignment in bytes that XLA wants of a host buffer: on the CPU it uses an aligned buffer in place, and copies any other."""

DTYPES: Mapping[str, np.dtype[Any]] = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    **{name: np.dtype(name) for name in ("<f2", "<f4", "<f8", "|i1")},
    "|u1": np.dtype(ml_dtypes.int4),
}
"""The dtypes of weights by their names in Zarr headers. No other dtype is read, since bytes that are taken for Python objects would be pointers.

Zarr knows no int4, and no weight is uint8: a byte holds two int4 that are neighbours along the last axis, the first in its low half.
"""

MAX_HEADER_BYTES = 1 << 16
"""The largest size of a Zarr header in bytes; headers of weights have about 200."""

_ADVICE = "convert the checkpoint again"


class Chunk(NamedTuple):
    """Where the bytes of a chunk begin: a file, and the offset in it."""

    file: Path
    offset: int


@dataclass(frozen=True)
class StoredArray:
    """An array on disk.

    Attributes:
        shape: the shape of the whole array.
        dtype: its numpy dtype.
        chunk: the shape of a chunk, which is the whole array or one slice of its first axis.
        chunks: where each chunk lies, in order.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunk: tuple[int, ...]
    chunks: tuple[Chunk, ...]

    def blocks(self, index: int | None = None) -> Blocks:
        """Yield the bytes of the whole array, or of one slice of its first axis."""
        if index is None:
            return chain.from_iterable(read_file(file, offset, self._chunk_bytes) for file, offset in self.chunks)
        number, row = divmod(index, self.chunk[0])
        size = self._chunk_bytes // self.chunk[0]
        file, offset = self.chunks[number]
        return read_file(file, offset + row * size, size)

    def load(self, index: tuple[slice, ...], dtype: np.dtype[Any]) -> np.ndarray:
        """Read a part of the array, cast to `dtype`, into memory that XLA can use in place."""
        part = aligned_empty(tuple(len(range(size)[cut]) for size, cut in zip(self.shape, index, strict=True)), dtype)
        if self.chunk == self.shape:
            self._fill(part, self.chunks[0], index)
        else:
            for target, row in zip(part, range(self.shape[0])[index[0]], strict=True):
                self._fill(target[None], self.chunks[row], (slice(None), *index[1:]))
        return part

    def _fill(self, target: np.ndarray, chunk: Chunk, index: tuple[slice, ...]) -> None:
        """Copy a part of one chunk to `target`: a whole chunk of the same dtype is read straight into it, any other is mapped, cut and cast."""
        if self.dtype == ml_dtypes.int4:
            pairs = np.memmap(chunk.file, np.uint8, "r", chunk.offset, (*self.chunk[:-1], self.chunk[-1] // 2))
            target[...] = unpacked(pairs[index[:-1]])[..., index[-1]]
        elif target.shape == self.chunk and target.dtype == self.dtype:
            read_into(bytes_of(target), chunk.file, chunk.offset)
        else:
            target[...] = np.memmap(chunk.file, self.dtype, "r", chunk.offset, self.chunk)[index]

    @property
    def _chunk_bytes(self) -> int:
        return _nbytes(self.chunk, self.dtype)

    @property
    def nbytes(self) -> int:
        """The bytes that the array takes on disk."""
        return _nbytes(self.shape, self.dtype)


def _nbytes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    return math.prod(shape) // 2 if dtype == ml_dtypes.int4 else math.prod(shape) * dtype.itemsize


def paired(values: np.ndarray) -> np.ndarray:
    """Return int4 values [..., n] as bytes [..., n / 2] that hold two neighbours each, the first in the low half."""
    low = values.astype(np.int8).view(np.uint8) & 15
    return low[..., ::2] | low[..., 1::2] << 4


def unpacked(pairs: np.ndarray) -> np.ndarray:
    """Return the int4 values [..., n] of bytes [..., n / 2] that ``paired`` made."""
    signed = pairs.view(np.int8)
    return np.stack([signed << 4 >> 4, signed >> 4], axis=-1).reshape(*pairs.shape[:-1], -1).astype(ml_dtypes.int4)


def packed(params: Path) -> Path:
    """Return the path of the zip file that may stand in the place of a folder of arrays."""
    return params.with_name(f"{params.name}.zip")


def has_arrays(params: Path) -> bool:
    """Return whether there are arrays at a path, in a folder or packed into a zip file."""
    return params.is_dir() or packed(params).is_file()


def read(params: Path) -> dict[KeyPath, StoredArray]:
    """Read the headers of a folder of arrays, or of the zip file in its place; no array is read yet.

    Raises:
        UserError: there are no arrays, they are damaged or incomplete, or another program wrote them in another layout.
    """
    found = _read_folder(params) if params.is_dir() or not packed(params).is_file() else _read_zip(packed(params))
    if not found:
        raise UserError(f"{params} holds no arrays; expected a checkpoint written by unipixel-jax convert to-jax")
    return found


def pack(params: Path, file: Path) -> None:
    """Write a folder of arrays as one zip file, whose bytes depend on the arrays alone.

    Args:
        params: the folder.
        file: the zip file to write or replace.

    Raises:
        UserError: the file cannot be written.
    """
    with replacing(file) as aside, zipfile.ZipFile(aside, "w") as archive:
        for path in sorted(p for p in params.rglob("*") if p.is_file()):
            archive.writestr(zipfile.ZipInfo(path.relative_to(params).as_posix()), path.read_bytes())


def chunk_name(rank: int, number: int) -> str:
    """Return the name of a chunk's file, which is its index along each axis; only the first axis is cut into chunks."""
    return ".".join([str(number), *["0"] * (rank - 1)])


def _read_folder(params: Path) -> dict[KeyPath, StoredArray]:
    def locate(name: str) -> tuple[Chunk, int]:
        file = params / name
        try:
            return Chunk(file, 0), file.stat().st_size
        except OSError:
            raise UserError(f"{file} is missing: the checkpoint is incomplete, {_ADVICE}") from None

    headers = sorted(params.glob("*/.zarray"))
    return {parse(header.parent.name): _array(header, read_json_object(header, _ADVICE, MAX_HEADER_BYTES), header.parent.name, locate) for header in headers}


def _read_zip(file: Path) -> dict[KeyPath, StoredArray]:
    try:
        with zipfile.ZipFile(file) as archive:
            members = {info.filename: info for info in archive.infolist()}
            return dict(_zip_arrays(file, archive, members))
    except UserError:
        raise
    except (Exception, RecursionError) as error:  # a damaged zip can raise nearly anything
        raise UserError(f"{file} is damaged ({error or type(error).__name__}): install the package again, or {_ADVICE}") from None


def _zip_arrays(file: Path, archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo]) -> Iterator[tuple[KeyPath, StoredArray]]:
    end = file.stat().st_size

    def locate(name: str) -> tuple[Chunk, int]:
        member = members.get(name)
        if member is None or member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise UserError(f"{file} lacks {name}, or holds it compressed or encrypted: {_ADVICE}")
        offset = member_offset(source, member)
        if offset + member.file_size > end:
            raise UserError(f"{file}: {name} lies beyond its end: {_ADVICE}")
        return Chunk(file, offset), member.file_size

    with open(file, "rb") as source:
        for name in sorted(members):
            if not name.endswith("/.zarray"):
                continue
            folder = name.removesuffix("/.zarray")
            chunk, size = locate(name)
            if size > MAX_HEADER_BYTES:
                raise UserError(f"{file}: the header {name} has {size} bytes: {_ADVICE}")
            source.seek(chunk.offset)
            header = json.loads(source.read(size))
            yield parse(folder), _array(f"{file}/{name}", header, folder, locate)


def member_offset(file: Any, member: zipfile.ZipInfo) -> int:
    """Return the offset at which the bytes of an uncompressed member of a zip file begin.

    The local header's name and extra field may be longer than the directory's, so the header itself is read (APPNOTE.TXT, 4.3.7).

    Args:
        file: the zip file, opened for reading bytes.
        member: an entry of its directory.
    """
    file.seek(member.header_offset)
    name, extra = struct.unpack("<26x2H", file.read(30))
    return member.header_offset + 30 + int(name) + int(extra)


def _array(where: str | os.PathLike[str], header: Any, folder: str, locate: Callable[[str], tuple[Chunk, int]]) -> StoredArray:
    """Return the array that a header describes, once the sizes of its chunks have been checked."""
    wanted = ("shape", "chunks", "dtype", "compressor", "order")
    if not isinstance(header, dict) or not all(key in header for key in wanted):
        raise UserError(f"{where} is no header of an array (it needs {', '.join(wanted)}): {_ADVICE}")
    shape, chunk = header["shape"], header["chunks"]
    if not all(isinstance(s, list) and len(s) <= 32 and all(type(n) is int and 0 <= n < 2**48 for n in s) for s in (shape, chunk)):
        raise UserError(f"{where} has the shape {str(shape)[:80]} in chunks of {str(chunk)[:80]}, expected lists of sizes: {_ADVICE}")
    if not isinstance(header["dtype"], str) or header["dtype"] not in DTYPES:
        raise UserError(f"{where} has the dtype {str(header['dtype'])[:80]}, expected one of {', '.join(DTYPES)}: {_ADVICE}")
    if header["compressor"] is not None or header["order"] != "C" or header.get("filters") or chunk not in (shape, [1, *shape[1:]]):
        raise UserError(f"{where} describes chunks of {chunk}, compressed or in another order; expected a checkpoint that unipixel_jax wrote")
    dtype = DTYPES[header["dtype"]]
    count = 1 if chunk == shape else shape[0]
    if dtype == ml_dtypes.int4:
        if not shape:
            raise UserError(f"{where} is a single byte, expected pairs of int4 along an axis: {_ADVICE}")
        shape, chunk = [*shape[:-1], shape[-1] * 2], [*chunk[:-1], chunk[-1] * 2]
    nbytes = _nbytes(chunk, dtype)
    chunks = []
    for number in range(count):
        found, size = locate(f"{folder}/{chunk_name(len(shape), number)}")
        if size != nbytes:
            raise UserError(f"{where} has a chunk {chunk_name(len(shape), number)} of {size} bytes, expected {nbytes}: {_ADVICE}")
        chunks.append(found)
    return StoredArray(tuple(shape), dtype, tuple(chunk), tuple(chunks))


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """Return a new array whose values mean nothing, in memory that XLA can use in place."""
    count = math.prod(shape) * dtype.itemsize
    raw = np.empty(count + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + count].view(dtype).reshape(shape)


def weights_digest(start: Path) -> str:
    """A checksum over the checksums of a converted directory's tensors: the same for the same weights, wherever they lie.

    Raises:
        UserError: no converted directory.
    """
    expected = "expected a directory made by: unipixel-jax convert to-jax"
    raw = read_json_object(start / "manifest.json", expected)
    try:
        named = {name: [entry["dtype"], entry["crc32"]] for name, entry in raw["tensors"].items()}
        return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{start / 'manifest.json'} does not list tensors with their checksums ({error!r}): {expected}") from None
