"""Arrays on disk as an Orbax checkpoint: written piece by piece in constant memory, restored straight into place.

An Orbax checkpoint without OCDBT is one Zarr v2 array per leaf (core/stored.py reads them). Orbax writes the tree, and Orbax can restore it; the bytes
themselves are read and written here. A stacked leaf is cut into one chunk per layer, so that a layer is copied between files without being held in memory.
Restoring a model takes as much memory as its arrays, where Orbax takes 1.7 times that, and more time (measured on a CPU, 3B in bfloat16: 7.8 against 13.5 GB).
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

from unipixel_jax.core.byte_streams import Blocks, bytes_of
from unipixel_jax.core.quantisation import Quantisation, keeps_dtype
from unipixel_jax.core.quantising import Stored, quantising
from unipixel_jax.core.stored import chunk_name, read
from unipixel_jax.core.trees import KeyPath, flatten, join, nest
from unipixel_jax.errors import UserError

WRITERS = 2
"""How many chunks are written at a time: one is read and its checksum computed while the other is written."""

_Module = TypeVar("_Module", bound=nnx.Module)


@dataclass(frozen=True)
class StreamedArray:
    """An array that is made piece by piece while it is written.

    Attributes:
        shape: the whole array's shape.
        dtype: its numpy dtype (ml_dtypes' bfloat16 included).
        pieces: one function per slice of the first axis, or a single one for the whole array; each yields its slice's bytes.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    pieces: Sequence[Callable[[], Blocks]]

    @classmethod
    def of(cls, array: np.ndarray | jax.Array) -> StreamedArray:
        """Return an array that exists already as a stream of one piece."""
        return cls(array.shape, np.dtype(array.dtype), (lambda: iter((bytes_of(np.ascontiguousarray(np.asarray(array))),)),))

    @property
    def size(self) -> int:
        """The number of entries, which Orbax adds up."""
        return math.prod(self.shape)

    @property
    def chunk(self) -> tuple[int, ...]:
        """The shape of one piece."""
        return (1, *self.shape[1:]) if len(self.pieces) > 1 else self.shape


class _Declare(ocp.type_handlers.NumpyHandler):
    """A type handler by which Orbax makes the folder and the header of each array; `save` writes the bytes afterwards."""

    async def serialize(self, values: Sequence[StreamedArray], infos: Sequence[Any], args: Any = None) -> list[Any]:
        for value, info in zip(values, infos, strict=True):
            await info.await_path_creation()
            info.path.mkdir(parents=True, exist_ok=True)
            name = "bfloat16" if value.dtype == ml_dtypes.bfloat16 else value.dtype.newbyteorder("<").str
            header = {"zarr_format": 2, "shape": value.shape, "chunks": value.chunk, "dtype": name, "order": "C", "dimension_separator": "."}
            (info.path / ".zarray").write_text(json.dumps(header | {"compressor": None, "filters": None, "fill_value": None}))
        return []


def save(path: Path, arrays: Mapping[KeyPath, StreamedArray | np.ndarray | jax.Array]) -> None:
    """Write a new Orbax checkpoint. It is not atomic: write into a temporary directory and rename that.

    Args:
        path: the directory to create.
        arrays: every leaf under its path; a StreamedArray is made piece by piece while it is written.

    Raises:
        OSError: the disk is full or the directory cannot be written.
    """
    leaves = {key: value if isinstance(value, StreamedArray) else StreamedArray.of(value) for key, value in arrays.items()}
    registry = ocp.type_handlers.create_type_handler_registry((StreamedArray, _Declare()), (jax.Array, ocp.type_handlers.ArrayHandler()))
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_compression=False, type_handler_registry=registry)
    with _quiet(), ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(path.absolute(), args=ocp.args.PyTreeSave(nest(leaves)))
    with ThreadPoolExecutor(WRITERS) as pool:
        chunks = [(path / join(key) / chunk_name(len(leaf.shape), i), piece) for key, leaf in leaves.items() for i, piece in enumerate(leaf.pieces)]
        try:
            for written in [pool.submit(_write, file, piece) for file, piece in chunks]:
                written.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def restore(path: Path, abstract: Mapping[Any, Any]) -> dict[Any, Any]:
    """Read arrays from disk straight to their devices.

    Args:
        path: a directory written by `save`.
        abstract: nested dictionary of jax.ShapeDtypeStruct (keys: names, or numbers for the items of a list). Arrays stored in another dtype are cast. An
            array is laid out by its sharding, where it has one, and else goes to the default device.

    Returns:
        The same nesting with a jax.Array for every leaf.

    Raises:
        UserError: there is no checkpoint, leaves are missing or unknown, or an array has another shape than asked for.
    """
    return _like(abstract, nest(restore_leaves(path, dict(flatten(abstract)))))


def restore_leaves(path: Path, abstract: Mapping[KeyPath, Any], unread: Mapping[KeyPath, Any] = {}) -> dict[KeyPath, jax.Array]:
    """Read arrays as `restore` does, as a flat dictionary of paths. Each process reads what its own devices hold, and casts it piece by piece.

    Args:
        path: a directory written by `save`.
        abstract: a jax.ShapeDtypeStruct for the path of each leaf to read, as in `restore`.
        unread: the other leaves of the model, which are not read but must be in the checkpoint too.

    Raises:
        UserError: see `restore`.
    """
    stored = read(path)
    _require_same_shapes(path, {**abstract, **unread}, stored)
    return {key: _restored(stored[key], leaf) for key, leaf in abstract.items()}


def restore_model(path: Path, model: _Module, dtype: jax.typing.DTypeLike | None = None, how: Quantisation | None = None) -> _Module:
    """Return a model with its weights read from disk.

    Args:
        path: a directory written by `save` from the model's own paths.
        model: the abstract model, whose leaves have shapes and may have shardings.
        dtype: the dtype to cast every weight to, but not quantised ones and their scales; None keeps the stored dtypes (float64, which JAX has only on demand,
            becomes float32).
        how: how full weights on disk are quantised while they are read, for a model of that form; None reads them as they are.

    Raises:
        UserError: see `restore`.
    """
    graph, state = nnx.split(model)
    full = read(path)
    stored: Mapping[KeyPath, Stored] = full if how is None else quantising(full, how)

    def target(key: KeyPath, leaf: Any) -> jax.ShapeDtypeStruct:
        own = leaf.dtype if key not in stored or keeps_dtype(key, leaf.dtype) else dtype or stored[key].dtype
        return jax.ShapeDtypeStruct(leaf.shape, jax.dtypes.canonicalize_dtype(own), sharding=leaf.sharding)

    pure = nnx.to_pure_dict(state)
    wanted = {key: target(key, leaf) for key, leaf in flatten(pure)}
    _require_same_shapes(path, wanted, stored)
    nnx.replace_by_pure_dict(state, _like(pure, nest({key: _restored(stored[key], leaf) for key, leaf in wanted.items()})))
    return nnx.merge(graph, state)


def _require_same_shapes(path: Path, wanted: Mapping[KeyPath, Any], stored: Mapping[KeyPath, Stored]) -> None:
    wrong = [f"{join(key)} is missing" for key in wanted if key not in stored]
    wrong += [f"{join(key)} is not part of the model" for key in stored if key not in wanted]
    wrong += [f"{join(k)} is {stored[k].shape}, expected {tuple(v.shape)}" for k, v in wanted.items() if k in stored and stored[k].shape != tuple(v.shape)]
    if wrong:
        more = f" and {len(wrong) - 20} more" if len(wrong) > 20 else ""
        raise UserError(f"{path} does not fit this model: {'; '.join(wrong[:20])}{more}. Convert the checkpoint again with its own config.json.")


def _write(file: Path, piece: Callable[[], Blocks]) -> None:
    with open(file, "wb") as target:
        target.writelines(piece())


def _restored(array: Stored, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    if leaf.sharding is None:
        # not committed to the device: committed weights make committed results, and a program that gets those back is compiled a second time
        return jax.device_put(array.load((slice(None),) * len(array.shape), np.dtype(leaf.dtype)))
    return jax.make_array_from_callback(array.shape, leaf.sharding, lambda index: array.load(index or (), np.dtype(leaf.dtype)))


def _like(abstract: Mapping[Any, Any], tree: Mapping[str, Any]) -> dict[Any, Any]:
    return {key: _like(value, tree[str(key)]) if isinstance(value, Mapping) else tree[str(key)] for key, value in abstract.items()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Orbax's warnings about its own settings (no OCDBT, a single host), which are intended here."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
