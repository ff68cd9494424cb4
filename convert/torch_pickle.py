"""A reader of torch checkpoints (`torch.save` files) that needs no torch and runs nothing that they contain.

Such a file is a zip archive with a pickle that describes the tensors, and one uncompressed member per storage (torch/serialization.py, "zipfile format").
A pickle is a program: it may name any function and call it. This reader knows the dozen names that describe tensors, gives each a stand-in of its own that
takes nothing but what torch gives it, and refuses the file at any other name. Storages may carry any device, among them Ascend's `npu:0`.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np

from unipixel_jax.core.byte_streams import read_file
from unipixel_jax.core.files import require_regular_file
from unipixel_jax.core.pickles import scan_pickle
from unipixel_jax.core.stored import member_offset
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
"""The dtypes of torch's storage classes."""

MAX_AXES = 64
"""The most axes of a tensor that are accepted, which is torch's own limit."""

MAX_SHARED = 4
"""How many times the size of a file its tensors may take together. Tied weights share a storage, and so count twice; a file with a much larger factor is a
small one that would fill a disk."""


def read_torch(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a `.pt`, `.pth` or `.bin` file, whether it is a state dictionary or holds one under `model`, `state_dict` or `module`.

    Raises:
        UserError: the file is no such file, is truncated, has one of torch's older formats, or its pickle asks for anything but tensors.
    """
    require_regular_file(path, _RESAVE)
    try:
        with zipfile.ZipFile(path) as archive:
            found = _load(path, archive)
    except UserError:
        raise
    # zipfile raises RuntimeError where a member is encrypted, NotImplementedError at versions that it does not know, and ValueError at senseless offsets
    except (zipfile.BadZipFile, RuntimeError, ValueError, OverflowError, EOFError, struct.error) as error:
        raise UserError(f"{path} is {_describe(path)} ({error}); {_RESAVE}") from None
    for key in ("model", "state_dict", "module"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not found or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in found.items()):
        raise UserError(f"{path} holds no dictionary of tensors; expected a state dictionary, or one under the key model")
    size, total = path.stat().st_size, sum(tensor.nbytes for tensor in found.values())
    if total > MAX_SHARED * size:
        raise UserError(f"{path} has {size} bytes and describes tensors of {total}, which share their bytes; {_RESAVE}")
    return dict(found)


_RESAVE = "expected a file of torch >= 1.6; copy it again, or load and save it once more with torch.save"


def _describe(path: Path) -> str:
    """Say what an unreadable file is, as far as its first bytes show."""
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
    order = members.get(f"{root}byteorder")
    if order:
        with _opened(path, archive, order) as file:
            if file.read(16) != b"little":
                raise UserError(f"{path} was saved on a big-endian machine; load it there and save it as safetensors")
    with _opened(path, archive, members[pickles[0]]) as file:
        program = scan_pickle(file, path)
    try:
        return _TensorUnpickler(io.BytesIO(program), path, root, members).load()
    except UserError:
        raise
    except Exception as error:  # a hostile or damaged pickle can fail in any way; it must still be one line
        raise UserError(f"{path} has a damaged or hostile pickle ({type(error).__name__}: {error}); copy it again") from None


def _opened(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> IO[bytes]:
    _require_stored(path, member)
    return archive.open(member)


def _require_stored(path: Path, member: zipfile.ZipInfo) -> None:
    """Refuse compressed members: torch writes none, and a small one may become gigabytes."""
    if member.compress_type != zipfile.ZIP_STORED:
        raise UserError(f"{path} holds compressed members, as torch never writes them; load it and save it once more with torch.save")


@dataclass(frozen=True)
class _Storage:
    """A storage of the archive: the offset of its bytes in the file, their number, and the dtype of its class."""

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
    """A stand-in for OrderedDict, whose attributes (torch keeps version numbers there) are dropped.

    It can only be made empty and filled by the pickle's own operations, so that `scan_pickle` has checked its keys.
    """

    def __init__(self) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        pass


class _TensorUnpickler(pickle.Unpickler):
    """Reads a checkpoint's pickle with stand-ins for the names that describe tensors, and refuses every other name."""

    def __init__(self, file: Any, path: Path, root: str, members: Mapping[str, zipfile.ZipInfo]) -> None:
        super().__init__(file)
        self._path, self._root, self._members = path, root, members
        self._storages: dict[str, _Storage] = {}
        tensor, parameter = _Callable(self._tensor), _Callable(lambda data, *_: data)
        self._globals: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): _Callable(_Dictionary),
            ("torch._utils", "_rebuild_tensor_v2"): tensor,
            ("torch._utils", "_rebuild_tensor"): tensor,
            ("torch_npu.utils.storage", "_rebuild_npu_tensor"): tensor,
            ("torch_npu.npu._format", "Format"): _Callable(self._layout),
            ("torch._utils", "_rebuild_parameter"): parameter,
            ("torch._utils", "_rebuild_parameter_with_state"): parameter,
            ("torch", "Size"): _Callable(self._whole_numbers),
        }
        self._globals |= {(module, name): dtype for name, dtype in STORAGES.items() for module in ("torch", "torch.storage")}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._globals:
            raise UserError(f"{self._path} asks for {module}.{name}, which is no part of a tensor: refused, nothing in the file was run")
        return self._globals[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        if not (isinstance(pid, tuple) and len(pid) >= 3 and all(isinstance(part, str) for part in pid[:3]) and pid[0] == "storage" and pid[1] in DTYPES):
            raise UserError(f"{self._path} asks for something that is no storage: it is damaged, copy it again")
        _, dtype, key = pid[:3]
        member = self._members.get(f"{self._root}data/{key}")
        if member is None:
            raise UserError(f"{self._path} lacks the storage {key!r}: it is incomplete, copy it again")
        if key not in self._storages:
            _require_stored(self._path, member)
            self._storages[key] = _Storage(self._data_offset(member), member.file_size, dtype)
        return replace(self._storages[key], dtype=dtype)

    def _data_offset(self, member: zipfile.ZipInfo) -> int:
        with open(self._path, "rb") as file:
            start = member_offset(file, member)
        if start + member.file_size > self._path.stat().st_size:
            raise UserError(f"{self._path} ends before its storage {member.filename}: it is truncated, copy it again")
        return start

    def _whole_numbers(self, items: Any) -> tuple[int, ...]:
        if not isinstance(items, tuple | list) or len(items) > MAX_AXES or not all(type(n) is int and n >= 0 for n in items):
            raise UserError(f"{self._path} has a tensor whose shape and strides are not up to {MAX_AXES} whole numbers: it is damaged, copy it again")
        return tuple(items)

    def _layout(self, number: Any) -> int:
        """Return the number of one of the NPU's layouts, which torch_npu gives as a number or as a member of its enumeration."""
        if type(number) is not int:
            raise UserError(f"{self._path} has a tensor whose NPU layout is no whole number: it is damaged, copy it again")
        return number

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Tensor:
        """Return the tensor that `_rebuild_tensor_v2` or the NPU's `_rebuild_npu_tensor` describes; `rest` (gradients, hooks, NPU layouts) is not needed.

        Whatever layout a tensor has on an NPU, torch_npu saves a copy in plain order and names the layout to which loading may return
        (torch_npu/utils/storage.py, `_reduce_ex`).
        """
        shape, strides, (start,) = self._whole_numbers(size), self._whole_numbers(stride), self._whole_numbers([offset])
        if not isinstance(storage, _Storage) or len(shape) != len(strides):
            raise UserError(f"{self._path} has a tensor without a storage, or with other strides than axes: it is damaged, copy it again")
        width = DTYPES[storage.dtype].itemsize
        last = start + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        room = storage.nbytes // width
        if 0 not in shape and (last >= room or math.prod(shape) > room):
            raise UserError(f"{self._path}: a tensor of shape {shape} at {start} lies outside its storage of {storage.nbytes} bytes; copy the file again")
        if strides == _contiguous(shape) or 0 in shape:
            return Tensor.in_file(self._path, storage.offset + start * width, storage.dtype, shape)

        def gather() -> np.ndarray:
            raw = b"".join(bytes(block) for block in read_file(self._path, storage.offset + start * width, (last - start + 1) * width))
            return np.lib.stride_tricks.as_strided(np.frombuffer(raw, DTYPES[storage.dtype]), shape, [step * width for step in strides])

        return Tensor.computed(storage.dtype, shape, gather)


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides, in elements, of a tensor in C order."""
    steps = [1]
    for size in reversed(shape[1:]):
        steps.append(steps[-1] * size)
    return tuple(reversed(steps[: len(shape)]))
