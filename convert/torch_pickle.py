"""Reading torch checkpoints (`torch.save` files) without torch and without running anything that they contain.

Such a file is a zip archive with a pickle that describes the tensors, and one uncompressed member per storage (torch/serialization.py, "zipfile format").
A pickle is a program: it may name any function and call it. This reader knows the dozen names that describe tensors, gives each a stand-in of its own,
and refuses the file at any other name. Storages may carry any device, among them Ascend's `npu:0`.
"""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from unipixel_jax.core.blocks import read_file
from unipixel_jax.errors import UserError

from .tensors import DTYPES, Tensor

STORAGES: Mapping[str, str] = {
    "BoolStorage": "BOOL",
    "ByteStorage": "U8",
    "CharStorage": "I8",
    "ShortStorage": "I16",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "IntStorage": "I32",
    "FloatStorage": "F32",
    "LongStorage": "I64",
    "DoubleStorage": "F64",
    "ComplexFloatStorage": "C64",
    "UntypedStorage": "U8",
}
"""torch's storage classes and the dtype of what they hold."""


def read_torch(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.pt`, `.pth` or `.bin` file, whether it is a state dictionary or holds one under `model`, `state_dict` or `module`.

    Raises:
        UserError: not such a file, a truncated one, one of torch's older formats, or one whose pickle asks for anything but tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found = _load(path, archive)
    except (zipfile.BadZipFile, EOFError, struct.error) as error:
        raise UserError(f"{path} is {_describe(path)} ({error}); {_RESAVE}") from None
    for key in ("model", "state_dict", "module"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not found or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in found.items()):
        raise UserError(f"{path} holds no dictionary of tensors; expected a state dictionary, or one under the key model")
    return dict(found)


_RESAVE = "expected a file of torch >= 1.6; copy it again, or load and save it once more with torch.save"


def _describe(path: Path) -> str:
    with open(path, "rb") as file:
        start = file.read(64)
    if start[:2] == b"PK":
        return "a truncated or damaged torch file"
    if start[:1] == b"\x80":
        return "in torch's format before 1.6, or a plain pickle, which is not read"
    return "no torch file"


def _load(path: Path, archive: zipfile.ZipFile) -> Any:
    members = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in members if name.endswith("data.pkl")]
    if len(pickles) != 1:
        raise UserError(f"{path} is a zip archive without a torch checkpoint in it (no data.pkl); expected a file of torch.save")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}byteorder" in members and archive.read(f"{root}byteorder") != b"little":
        raise UserError(f"{path} was saved on a big-endian machine; load it there and save it as safetensors")
    with archive.open(pickles[0]) as file:
        try:
            return _TensorUnpickler(file, path, root, members).load()
        except UserError:
            raise
        except Exception as error:  # a hostile or damaged pickle can fail in any way; it must still be one line
            raise UserError(f"{path} has a damaged or hostile pickle ({type(error).__name__}: {error}); copy it again") from None


@dataclass(frozen=True)
class _Storage:
    """A storage of the archive: where its bytes start, how many they are, and the dtype that its class says."""

    offset: int
    nbytes: int
    dtype: str


class _Callable:
    """A stand-in for one of torch's functions. Pickle may call it, and may not change it."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, state: Any) -> NoReturn:
        raise pickle.UnpicklingError("it tries to change a function: refused, nothing in the file was run")


class _Dictionary(dict[Any, Any]):
    """A stand-in for OrderedDict, whose attributes (torch keeps version numbers there) are dropped."""

    def __setstate__(self, state: Any) -> None:
        pass


class _TensorUnpickler(pickle.Unpickler):
    def __init__(self, file: Any, path: Path, root: str, members: Mapping[str, zipfile.ZipInfo]) -> None:
        super().__init__(file)
        self._path, self._root, self._members = path, root, members
        tensor, parameter = _Callable(self._tensor), _Callable(lambda data, *_: data)
        self._globals: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): _Callable(_Dictionary),
            ("torch._utils", "_rebuild_tensor_v2"): tensor,
            ("torch._utils", "_rebuild_tensor"): tensor,
            ("torch_npu.utils.storage", "_rebuild_npu_tensor"): tensor,
            ("torch._utils", "_rebuild_parameter"): parameter,
            ("torch._utils", "_rebuild_parameter_with_state"): parameter,
            ("torch", "Size"): _Callable(tuple),
        }
        self._globals |= {(module, name): dtype for name, dtype in STORAGES.items() for module in ("torch", "torch.storage")}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._globals:
            raise UserError(f"{self._path} asks for {module}.{name}, which is no part of a tensor: refused, nothing in the file was run")
        return self._globals[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key = pid[:3]
        member = self._members.get(f"{self._root}data/{key}")
        if kind != "storage" or dtype not in DTYPES or member is None:
            raise UserError(f"{self._path} lacks the storage {key!r}: it is incomplete, copy it again")
        if member.compress_type != zipfile.ZIP_STORED:
            raise UserError(f"{self._path} holds compressed storages, as torch never writes them; load it and save it once more with torch.save")
        return _Storage(self._data_offset(member), member.file_size, dtype)

    def _data_offset(self, member: zipfile.ZipInfo) -> int:
        """The local header's name and extra field may be longer than the directory's, so the header itself is read (APPNOTE.TXT, 4.3.7)."""
        with open(self._path, "rb") as file:
            file.seek(member.header_offset)
            name, extra = struct.unpack("<26x2H", file.read(30))
        return member.header_offset + 30 + int(name) + int(extra)

    def _tensor(self, storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *rest: Any) -> Tensor:
        """What `_rebuild_tensor_v2` and the NPU's `_rebuild_npu_tensor` describe; gradients, hooks and NPU layouts (`rest`) are not needed."""
        shape, strides, dtype = tuple(size), tuple(stride), storage.dtype
        width = DTYPES[dtype].itemsize
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        if 0 not in shape and not (0 <= offset <= last < storage.nbytes // width and min((*shape, *strides), default=0) >= 0):
            raise UserError(f"{self._path}: a tensor of shape {shape} at {offset} lies outside its storage of {storage.nbytes} bytes; copy the file again")
        if strides == _contiguous(shape) or 0 in shape:
            return Tensor.in_file(self._path, storage.offset + offset * width, dtype, shape)

        def gather() -> np.ndarray:
            raw = b"".join(bytes(block) for block in read_file(self._path, storage.offset + offset * width, (last - offset + 1) * width))
            return np.lib.stride_tricks.as_strided(np.frombuffer(raw, DTYPES[dtype]), shape, [step * width for step in strides])

        return Tensor.computed(dtype, shape, gather)


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    steps = [1]
    for size in reversed(shape[1:]):
        steps.append(steps[-1] * size)
    return tuple(reversed(steps[: len(shape)]))
