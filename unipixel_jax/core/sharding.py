"""Where arrays lie on a mesh: weights by rules over their logical axes, activations by ``constrain``.

Nothing here knows a model. Without a mesh (``jax.set_mesh``), everything is left where it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import jax
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from unipixel_jax.core.axes import HEADS, IMAGES, LAYERS, SEQUENCE, Axes
from unipixel_jax.core.mesh import AXES, CONTEXT, DATA, FSDP, TENSOR

R = TypeVar("R")

BATCH = (DATA, FSDP)
"""The mesh axes over which samples are divided."""

ACTIVATIONS: Mapping[str, tuple[str, ...]] = {SEQUENCE: (CONTEXT,), HEADS: (TENSOR,), IMAGES: (CONTEXT, TENSOR)}
"""The mesh axes that divide each logical axis of an activation."""


@dataclass(frozen=True)
class Rules:
    """How weights are divided.

    Attributes:
        prefer: for each mesh axis the logical axes that it may divide, best first; each weight takes the first that it has, that divides, and that no
            other mesh axis has taken.
        units: for logical axes that fall into whole units (heads), how many there are: a mesh axis divides the units, not only the numbers.
    """

    prefer: Mapping[str, tuple[str, ...]]
    units: Mapping[str, int] = field(default_factory=dict)

    def spec(self, axes: Axes, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> PartitionSpec:
        """The place of a weight. Vectors (besides the axis of layers) are repeated: to collect them costs more than they save.

        Args:
            axes: logical names of its dimensions.
            shape: its sizes.
            mesh: the chips.
        """
        placed: dict[int, str] = {}
        if sum(name != LAYERS for name in axes) >= 2:
            for mesh_axis, names in self.prefer.items():
                size = mesh.shape[mesh_axis]
                fits = [i for name in names for i, own in enumerate(axes) if own == name and i not in placed and self._divides(name, shape[i], size)]
                if size > 1 and fits:
                    placed[fits[0]] = mesh_axis
        last = max(placed, default=-1)
        return PartitionSpec(*(placed.get(i) for i in range(last + 1)))

    def _divides(self, name: str, length: int, size: int) -> bool:
        return self.units.get(name, length) % size == 0 and length % size == 0


def current_mesh() -> AbstractMesh | None:
    """The mesh that is set, if it has this project's axes and more than one chip, and the caller is not inside a ``shard_map`` over it; else None."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh if mesh.axis_names == AXES and mesh.size > 1 and not mesh.manual_axes else None


def mesh_axes(name: str | None, length: int) -> tuple[str, ...]:
    """The axes of the mesh that is set which divide ``length`` entries of an activation's logical axis; none where they do not."""
    mesh = current_mesh()
    axes = () if mesh is None or name is None else tuple(axis for axis in ACTIVATIONS[name] if mesh.shape[axis] > 1)
    return axes if mesh is not None and length % math.prod(mesh.shape[axis] for axis in axes) == 0 else ()


def constrain(x: R, *names: str | None) -> R:
    """Arrays placed by the logical names of their leading dimensions; the rest, and what does not divide, is not divided.

    Under ``over_samples`` the dimension of samples is divided as well. So this also keeps XLA from moving samples between chips.

    Args:
        x: a tree of arrays that share their leading dimensions.
        names: of ``ACTIVATIONS``, or None.
    """
    if current_mesh() is None:
        return x

    def place(a: jax.Array) -> jax.Array:
        axes = [mesh_axes(name, length) for name, length in zip(names, a.shape, strict=False)]
        return jax.lax.with_sharding_constraint(a, PartitionSpec(*(axis or None for axis in axes)))

    return jax.tree.map(place, x)


def over_samples(function: Callable[..., R]) -> Callable[..., R]:
    """``jax.vmap`` over the leading dimension of all arguments, which is divided over the mesh's axes for samples."""
    mesh = current_mesh()
    return jax.vmap(function, spmd_axis_name=None if mesh is None else BATCH)


def batch_spec(rank: int) -> PartitionSpec:
    """The place of an array [B, ...] of samples."""
    return PartitionSpec(BATCH, *[None] * (rank - 1))


def tree_bytes(tree: Any) -> int:
    """Bytes of the arrays (or of the shapes) of a tree on one chip."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        shape = leaf.sharding.shard_shape(leaf.shape) if getattr(leaf, "sharding", None) is not None else leaf.shape
        total += math.prod(shape) * leaf.dtype.itemsize
    return total
