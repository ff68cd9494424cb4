"""Quantising weights on disk, read a few rows at a time: full arrays appear as whole numbers and scales, to be restored or written in bounded memory.

L layers of a stacked array, G groups of g neighbouring weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from unipixel_jax.core.quantisation import Quantisation, is_quantised, scales_of
from unipixel_jax.core.stored import StoredArray, aligned_empty
from unipixel_jax.core.trees import KeyPath
from unipixel_jax.errors import UserError

ROWS_AT_ONCE = 1 << 24
"""The most weights that are in memory in full at a time, rounded to whole rows; at least one row."""

Index = tuple[slice, ...]
_Kept = dict[tuple[Any, ...], np.ndarray]


def quantise(weight: np.ndarray, dtype: str, group: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Quantise a matrix with qwix: each weight is rounded to the nearest multiple of the scale, by which the largest of those that share it just fits.

    Args:
        weight: [out, in] of any float dtype.
        dtype: "int8" or "int4".
        group: how many neighbours of a row share a scale; None for the whole row.

    Returns:
        Whole numbers [out, in] and scales [out] in float32; or in groups, whole numbers [G, g, out] and scales [G, out] in bfloat16.

    Raises:
        UserError: qwix is not installed.
    """
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        values, scales = _program(dtype, group)(np.asarray(weight, np.float32))
        return np.asarray(values), np.asarray(scales)


@cache
def _program(dtype: str, group: int | None) -> Any:
    try:
        import qwix
    except ImportError as error:
        raise UserError(f"quantising needs {error.name}: run pip install 'unipixel-jax[quantise]'") from error

    def run(weight: jax.Array) -> tuple[jax.Array, jax.Array]:
        if group is None:
            whole = qwix.quantize(weight, dtype, channelwise_axes=(0,))
            return whole.qvalue, whole.scale[:, 0]
        parts = qwix.quantize(weight, dtype, channelwise_axes=(0,), tiled_axes={1: group}, scale_dtype=jnp.bfloat16)
        return parts.qvalue.reshape(weight.shape[0], -1, group).transpose(1, 2, 0), parts.scale.T

    return jax.jit(run)


@dataclass(frozen=True)
class QuantisedWeights:
    """A full array on disk [L, out, in] or [out, in], as whole numbers of the shapes of ``quantise`` after the axis of layers.

    Attributes:
        source: the full array.
        name: the dtype, "int8" or "int4".
        group: as in ``quantise``.
        kept: scales that were made with the weights and not asked for yet.
    """

    source: StoredArray
    name: str
    group: int | None
    kept: _Kept = field(default_factory=dict, repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole numbers."""
        *stack, out, inner = self.source.shape
        return (*stack, out, inner) if self.group is None else (*stack, inner // self.group, self.group, out)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the whole numbers."""
        return np.dtype(ml_dtypes.int4 if self.name == "int4" else self.name)

    def load(self, index: Index, dtype: np.dtype[Any]) -> np.ndarray:
        """Return a part of the whole numbers, in memory that XLA can use in place."""
        index = tuple(slice(*cut.indices(size)) for cut, size in zip(index, self.shape, strict=True))
        part = aligned_empty(tuple(cut.stop - cut.start for cut in index), dtype)
        stack, own = index[: self.stacked], index[self.stacked :]
        rows, groups = (own[0], slice(None)) if self.group is None else (own[2], own[0])
        targets = part if self.stacked else part[None]
        for target, layer in zip(targets, self.layers(stack), strict=True):
            for start, values, scales, key in self._quantised(layer, rows, groups):
                self.kept[key] = scales
                if self.group is None:
                    target[start : start + len(values)] = values[:, own[1]]
                else:
                    target[:, :, start : start + values.shape[2]] = values[:, own[1]]
        return part

    @property
    def stacked(self) -> int:
        """How many axes of layers there are: 1 or 0."""
        return len(self.source.shape) - 2

    def layers(self, stack: Index) -> list[Index]:
        """Return the part of the source that is the matrix of each layer, without its rows and columns."""
        return [(slice(i, i + 1),) for i in range(stack[0].start, stack[0].stop)] if stack else [()]

    def scales(self, layer: Index, rows: slice, groups: slice) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the scales of a layer's rows in parts, each with the number of rows before it: those that were kept, which are given up, or new ones."""
        for start, stop in self._blocks(rows):
            scales = self.kept.pop(self._key(layer, start, stop, groups), None)
            yield start - rows.start, self._make(layer, start, stop, groups)[1] if scales is None else scales

    def _quantised(self, layer: Index, rows: slice, groups: slice) -> Iterator[tuple[int, np.ndarray, np.ndarray, tuple[Any, ...]]]:
        for start, stop in self._blocks(rows):
            values, scales = self._make(layer, start, stop, groups)
            yield start - rows.start, values, scales, self._key(layer, start, stop, groups)

    def _make(self, layer: Index, start: int, stop: int, groups: slice) -> tuple[np.ndarray, np.ndarray]:
        size = self.group or 1
        columns = slice(None) if groups == slice(None) else slice(groups.start * size, groups.stop * size)
        found = self.source.load((*layer, slice(start, stop), columns), self.source.dtype)
        return quantise(found.reshape(found.shape[-2:]), self.name, self.group)

    def _blocks(self, rows: slice) -> Iterator[tuple[int, int]]:
        step = max(1, ROWS_AT_ONCE // self.source.shape[-1])
        return ((start, min(start + step, rows.stop)) for start in range(rows.start, rows.stop, step))

    @staticmethod
    def _key(layer: Index, start: int, stop: int, groups: slice) -> tuple[Any, ...]:
        return (*((cut.start,) for cut in layer), start, stop, groups.start, groups.stop)


@dataclass(frozen=True)
class QuantisedScales:
    """The scales of quantised weights: [L, out] or [L, G, out], or the same without the axis of layers."""

    weights: QuantisedWeights

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the scales."""
        shape = self.weights.shape
        return shape[:-1] if self.weights.group is None else (*shape[:-2], shape[-1])

    @property
    def stacked(self) -> int:
        """How many axes of layers there are: 1 or 0."""
        return self.weights.stacked

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the scales."""
        return np.dtype(np.float32 if self.weights.group is None else ml_dtypes.bfloat16)

    def load(self, index: Index, dtype: np.dtype[Any]) -> np.ndarray:
        """Return a part of the scales, in memory that XLA can use in place."""
        index = tuple(slice(*cut.indices(size)) for cut, size in zip(index, self.shape, strict=True))
        part = aligned_empty(tuple(cut.stop - cut.start for cut in index), dtype)
        rows, groups = index[-1], slice(None) if self.weights.group is None else index[self.stacked]
        for target, layer in zip(part if self.stacked else part[None], self.weights.layers(index[: self.stacked]), strict=True):
            for start, scales in self.weights.scales(layer, rows, groups):
                target[..., start : start + scales.shape[-1]] = scales
        return part


Stored = StoredArray | QuantisedWeights | QuantisedScales


def quantising(stored: Mapping[KeyPath, StoredArray], how: Quantisation) -> dict[KeyPath, Stored]:
    """Return the arrays of a full model on disk as those of the quantised model, each of which is made when it is loaded.

    Args:
        stored: the full arrays by path.
        how: how they are quantised.
    """
    arrays: dict[KeyPath, Stored] = {}
    for path, array in stored.items():
        if is_quantised(path):
            in_blocks = path[1] == "blocks"
            weights = QuantisedWeights(array, how.weights if in_blocks else "int8", how.group if in_blocks else None)
            arrays |= {path: weights, scales_of(path): QuantisedScales(weights)}
        else:
            arrays[path] = array
    return arrays
