"""Arrays on disk as an Orbax checkpoint: written piece by piece in constant memory, restored straight into place.

An Orbax checkpoint without OCDBT is one Zarr v2 array per leaf (core/stored.py reads them). Orbax writes the tree, and Orbax can restore it; the bytes
themselves are moved here. A stacked leaf is cut into one chunk per layer, so a layer is copied from or to another file without being held in memory, and
a model is restored in its own size of memory, where Orbax takes 1.7 times that and longer (measured on a CPU, 3B in bfloat16: 7.8 against 13.5 GB).
"""

from __future__ import annotations

import json
import logging
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
from unipixel_jax.core.stored import StoredArray, chunk_name, read
from unipixel_jax.core.trees import KeyPath, flatten, join, nest
from unipixel_jax.errors import UserError

WRITERS = 2
"""Chunks written at a time: one is read and summed while the other is written."""

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
        """An array that exists already, as one piece."""
        return cls(array.shape, np.dtype(array.dtype), (lambda: iter((bytes_of(np.ascontiguousarray(np.asarray(array))),)),))

    @property
    def chunk(self) -> tuple[int, ...]:
        """Shape of one piece."""
        return (1, *self.shape[1:]) if len(self.pieces) > 1 else self.shape


class _Declare(ocp.type_handlers.NumpyHandler):
    """Tells Orbax that the arrays exist; `save` writes their bytes afterwards."""

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
    """Read arrays into their final place.

    Args:
        path: a directory written by `save`.
        abstract: nested dictionary of jax.ShapeDtypeStruct (keys: names, or numbers for the items of a list). Arrays stored in another dtype are cast; a
            sharding, where one is given, is where the array goes; otherwise the default device.

    Returns:
        The same nesting with a jax.Array for every leaf.

    Raises:
        UserError: no checkpoint there, leaves missing or too many, or another shape than asked for.
    """
    return _like(abstract, nest(restore_leaves(path, dict(flatten(abstract)))))


def restore_leaves(path: Path, abstract: Mapping[KeyPath, Any], unread: Mapping[KeyPath, Any] = {}) -> dict[KeyPath, jax.Array]:
    """As `restore`, with every leaf under its path. Each process reads what its own devices hold, and casts it piece by piece.

    Args:
        path: a directory written by `save`.
        abstract: what to read.
        unread: the model's other leaves, which must be there too.

    Raises:
        UserError: see `restore`.
    """
    stored = read(path)
    _require_same_shapes(path, {**abstract, **unread}, stored)
    return {key: _restored(stored[key], leaf) for key, leaf in abstract.items()}


def restore_model(path: Path, model: _Module, dtype: jax.typing.DTypeLike | None = None) -> _Module:
    """A model with its weights read from disk.

    Args:
        path: a directory written by `save` from the model's own paths.
        model: the abstract model, whose leaves say shape and, where given, sharding.
        dtype: what to cast every weight to; None keeps each weight's stored one (float64, which JAX has only on demand, becomes float32).

    Raises:
        UserError: see `restore`.
    """
    graph, state = nnx.split(model)
    stored = read(path)

    def target(key: KeyPath, leaf: Any) -> jax.ShapeDtypeStruct:
        own = stored[key].dtype if key in stored else leaf.dtype
        return jax.ShapeDtypeStruct(leaf.shape, dtype or jax.dtypes.canonicalize_dtype(own), sharding=leaf.sharding)

    pure = nnx.to_pure_dict(state)
    wanted = {key: target(key, leaf) for key, leaf in flatten(pure)}
    nnx.replace_by_pure_dict(state, restore(path, _like(pure, nest(wanted))))
    return nnx.merge(graph, state)


def _require_same_shapes(path: Path, wanted: Mapping[KeyPath, Any], stored: Mapping[KeyPath, StoredArray]) -> None:
    wrong = [f"{join(key)} is missing" for key in wanted if key not in stored]
    wrong += [f"{join(key)} is not part of the model" for key in stored if key not in wanted]
    wrong += [f"{join(k)} is {stored[k].shape}, expected {tuple(v.shape)}" for k, v in wanted.items() if k in stored and stored[k].shape != tuple(v.shape)]
    if wrong:
        more = f" and {len(wrong) - 20} more" if len(wrong) > 20 else ""
        raise UserError(f"{path} does not fit this model: {'; '.join(wrong[:20])}{more}. Convert the checkpoint again with its own config.json.")


def _write(file: Path, piece: Callable[[], Blocks]) -> None:
    with open(file, "wb") as target:
        target.writelines(piece())


def _restored(array: StoredArray, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array.load(index or (), np.dtype(leaf.dtype)))


def _like(abstract: Mapping[Any, Any], tree: Mapping[str, Any]) -> dict[Any, Any]:
    return {key: _like(value, tree[str(key)]) if isinstance(value, Mapping) else tree[str(key)] for key, value in abstract.items()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Orbax reports its own choices (no OCDBT, no multi-host) as warnings; they are intended here."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
