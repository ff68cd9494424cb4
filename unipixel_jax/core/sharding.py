"""Where arrays lie on a mesh: weights by rules over their logical axes, activations by ``constrain``.

Nothing here knows a model. Without a mesh (``jax.set_mesh``), everything is left where it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from unipixel_jax.core.axes import HEADS, IMAGES, LAYERS, SEQUENCE, Axes
from unipixel_jax.core.mesh import AXES, CONTEXT, DATA, FSDP, TENSOR, devices_along

R = TypeVar("R")
M = TypeVar("M")

BATCH = (DATA, FSDP)
"""The mesh axes over which samples are divided."""

ACTIVATIONS: Mapping[str, tuple[str, ...]] = {SEQUENCE: (CONTEXT,), HEADS: (TENSOR,), IMAGES: (CONTEXT, TENSOR)}
"""The mesh axes that divide each logical axis of an activation."""


@dataclass(frozen=True)
class Rules:
    """How weights are divided.

    Attributes:
        prefer: for each group of mesh axes the logical axes that it may divide, best first; each weight takes the first that it has, that divides, and that
            no other mesh axis has taken. Where the whole group divides none of them, the group without its last axis is tried.
        together: logical axes that several groups may divide at once.
        units: for logical axes that fall into whole units (heads), how many there are: a mesh axis divides the units, not only the numbers.
    """

    prefer: Mapping[tuple[str, ...], tuple[str, ...]]
    together: tuple[str, ...] = ()
    units: Mapping[str, int] = field(default_factory=dict)

    def spec(self, axes: Axes, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> PartitionSpec:
        """The place of a weight. Vectors (besides the axis of layers) are repeated: to collect them costs more than they save.

        Args:
            axes: logical names of its dimensions.
            shape: its sizes.
            mesh: the devices.
        """
        placed: dict[int, tuple[str, ...]] = {}
        if sum(name != LAYERS for name in axes) >= 2:
            for group, names in self.prefer.items():
                several = tuple(axis for axis in group if mesh.shape[axis] > 1)
                tries = (
                    (i, several[:end])
                    for end in range(len(several), 0, -1)
                    for name in names
                    for i, own in enumerate(axes)
                    if own == name and self._fits(name, shape[i], placed.get(i, ()), several[:end], mesh)
                )
                for i, fitting in islice(tries, 1):
                    placed[i] = (*placed.get(i, ()), *fitting)
        last = max(placed, default=-1)
        return PartitionSpec(*(placed.get(i) for i in range(last + 1)))

    def _fits(self, name: str, length: int, taken: tuple[str, ...], more: tuple[str, ...], mesh: Mesh | AbstractMesh) -> bool:
        size = devices_along(mesh, (*taken, *more))
        return (not taken or name in self.together) and self.units.get(name, length) % size == 0 and length % size == 0


def current_mesh() -> AbstractMesh | None:
    """The mesh that is set, if it has this project's axes and more than one device, and the caller is not inside a ``shard_map`` over it; else None."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh if mesh.axis_names == AXES and mesh.size > 1 and not mesh.manual_axes else None


def mesh_axes(name: str | None, length: int) -> tuple[str, ...]:
    """The axes of the mesh that is set which divide ``length`` entries of an activation's logical axis; none where they do not."""
    mesh = current_mesh()
    axes = () if mesh is None or name is None else tuple(axis for axis in ACTIVATIONS[name] if mesh.shape[axis] > 1)
    return axes if mesh is not None and length % devices_along(mesh, axes) == 0 else ()


def constrain(x: R, *names: str | None) -> R:
    """Arrays placed by the logical names of their leading dimensions; the rest, and what does not divide, is not divided.

    Under ``over_samples`` the dimension of samples is divided as well. So this also keeps XLA from moving samples between devices.

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


def pad_to_multiple(x: jax.Array, axes: Iterable[str]) -> jax.Array:
    """Zeros added to the leading dimension until it divides along some axes of the mesh that is set."""
    mesh = current_mesh()
    parts = 1 if mesh is None else devices_along(mesh, axes)
    return jnp.pad(x, ((0, -x.shape[0] % parts), *((0, 0),) * (x.ndim - 1)))


def over_samples(function: Callable[..., R]) -> Callable[..., R]:
    """``jax.vmap`` over the leading dimension of all arguments, which is divided over the mesh's axes for samples."""
    mesh = current_mesh()
    return jax.vmap(function, spmd_axis_name=None if mesh is None else BATCH)


def over_images(function: Callable[..., R]) -> Callable[..., R]:
    """``jax.vmap`` over the leading dimension of all arguments, which is divided over the devices that share a sample."""
    mesh = current_mesh()
    return jax.vmap(function, spmd_axis_name=None if mesh is None else ACTIVATIONS[IMAGES])


WHOLE, SHARDED = "whole", "divided"
"""Where a variable's metadata say how it lies while it is used, and while it is kept: the axes of ``PartitionSpec``s without that of layers."""


def all_gathered(module: M) -> M:
    """The same weights, all-gathered along ``fsdp`` and ``context`` for use; their gradients are scattered back to the shards. Weights of stacked layers
    are left as they are, and so is what has no place.

    Without, XLA may take it that activations are cheaper to move, and moves them in every product.
    """
    if current_mesh() is None:
        return module

    def collect(variable: Any) -> Any:
        metadata = variable.get_metadata()
        whole, own = metadata.get(WHOLE), metadata.get(SHARDED)
        value = variable.get_value()
        if whole == own or value.ndim != len(metadata["axes"]) - (LAYERS in metadata["axes"]):
            return variable
        return variable.replace(_collect(PartitionSpec(*whole), PartitionSpec(*own), value))

    return jax.tree.map(collect, module, is_leaf=lambda x: isinstance(x, nnx.Variable))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _collect(whole: PartitionSpec, divided: PartitionSpec, weight: jax.Array) -> jax.Array:
    return jax.lax.with_sharding_constraint(weight, whole)


def _collect_forward(whole: PartitionSpec, divided: PartitionSpec, weight: jax.Array) -> tuple[jax.Array, None]:
    return _collect(whole, divided, weight), None


def _collect_backward(whole: PartitionSpec, divided: PartitionSpec, saved: None, d_weight: jax.Array) -> tuple[jax.Array]:
    return (jax.lax.with_sharding_constraint(d_weight, divided),)


_collect.defvjp(_collect_forward, _collect_backward)


def batch_spec(rank: int) -> PartitionSpec:
    """The place of an array [B, ...] of samples."""
    return PartitionSpec(BATCH, *[None] * (rank - 1))
