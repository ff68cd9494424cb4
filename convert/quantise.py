"""The quantisation of a converted directory: another converted directory, in which the language model's weights are whole numbers with scales."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np

from unipixel_jax.core import checkpoint
from unipixel_jax.core.byte_streams import Blocks, bytes_of
from unipixel_jax.core.files import PARAMS
from unipixel_jax.core.params import shapes
from unipixel_jax.core.quantisation import Quantisation
from unipixel_jax.core.quantising import Stored, quantise, quantising
from unipixel_jax.core.stored import StoredArray, paired
from unipixel_jax.errors import UserError
from unipixel_jax.models.quantised import quantised_config
from unipixel_jax.models.unipixel import abstract_model

from .hf_config import copy_companions, json_bytes, read_config
from .manifest import Manifest
from .output import new_directory
from .progress import bar


def convert(source: Path, target: Path, how: Quantisation, *, force: bool = False) -> int:
    """Write a converted directory with quantised weights, which every command takes as a model. It appears at once when it is complete, or not at all.

    Each layer is read, quantised and written by itself, so that the memory that it takes does not grow with the number of layers.

    Args:
        source: a converted directory with full weights.
        target: the directory to make.
        how: how weights are quantised.
        force: replace a directory that is not empty.

    Returns:
        The bytes of the arrays.

    Raises:
        UserError: the source is no converted directory, is quantised already or has widths that the groups do not divide; qwix is not installed; or the output
            cannot be written.
    """
    manifest = Manifest.read(source)
    raw, full = read_config(source)
    config = quantised_config(full, how, source)
    arrays = quantising(checkpoint.read(source / PARAMS), how)
    wanted = shapes(abstract_model(config))
    if {path: array.shape for path, array in arrays.items()} != wanted:
        raise UserError(f"{source / PARAMS} holds other arrays than its config.json asks for: convert the checkpoint again")
    quantise(np.ones((1, how.group or 1), np.float32), how.weights, how.group)  # without qwix, nothing is begun
    total = sum(_nbytes(array) for array in arrays.values())
    with new_directory(target, force, total, [source]) as directory, bar("quantising", total) as advance:
        checkpoint.save(directory / PARAMS, {path: _streamed(array, advance) for path, array in arrays.items()})
        (directory / "config.json").write_bytes(json_bytes(raw | how.written()))
        copy_companions([source], directory)
        replace(manifest, source={**manifest.source, "quantised": str(how)}).write(directory)
    return total


def _nbytes(array: Stored) -> int:
    count = int(np.prod(array.shape))
    return count // 2 if array.dtype == ml_dtypes.int4 else count * array.dtype.itemsize


def _streamed(array: Stored, advance: Callable[[int], None]) -> checkpoint.StreamedArray:
    """Return an array that is made while it is written: layer by layer where it is stacked, and as it is where it is not quantised."""
    shape, dtype = array.shape, array.dtype
    if dtype == ml_dtypes.int4:
        shape, dtype = (*shape[:-1], shape[-1] // 2), np.dtype(np.uint8)
    if isinstance(array, StoredArray):
        layers = [None] if len(array.chunks) == 1 else range(len(array.chunks))
        read: list[Callable[[], Blocks]] = [partial(array.blocks, layer) for layer in layers]
    else:
        stacked = array.stacked
        read = [partial(_made, array, layer) for layer in (range(array.shape[0]) if stacked else [None])]
    return checkpoint.StreamedArray(shape, dtype, tuple(partial(_counted, piece, advance) for piece in read))


def _made(array: Stored, layer: int | None) -> Blocks:
    """Yield the bytes of one layer of an array that is quantised now; None for an array without layers."""
    index = tuple(slice(None) if axis or layer is None else slice(layer, layer + 1) for axis in range(len(array.shape)))
    values = array.load(index, array.dtype)
    yield bytes_of(np.ascontiguousarray(paired(values) if values.dtype == ml_dtypes.int4 else values))


def _counted(piece: Callable[[], Blocks], advance: Callable[[int], None]) -> Blocks:
    for block in piece():
        yield block
        advance(len(block))
