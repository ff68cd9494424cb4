"""How arrays are sharded over a mesh: weights by rules over their logical axes, activations by ``constrain``.

Nothing here knows a model. Without a mesh (``jax.set_mesh``), arrays stay as they are.
"""

from __future__ import annotations

import math
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
from unipixel_jax.core.platform import platform

HOST_MEMORY = "pinned_host"
"""JAX's name of the memory of the hosts from which devices can copy. Arrays in it are moved to the devices before anything is computed of them."""

R = TypeVar("R")
M = TypeVar("M")

BATCH = (DATA, FSDP)
"""The mesh axes over which samples are sharded."""

ACTIVATIONS: Mapping[str, tuple[str, ...]] = {SEQUENCE: (CONTEXT,), HEADS: (TENSOR,), IMAGES: (CONTEXT, TENSOR)}
"""The mesh axes over which each logical axis of an activation is sharded."""


@dataclass(frozen=True)
class Rules:
    """How weights are sharded.

    Attributes:
        prefer: for each group of mesh axes, the logical axes that it may shard, best first. A weight is sharded along the first of them that it has, whose
            length is a multiple of the group's size, and that no other group has taken. Where there is none, the group without its last axis is tried.
        together: logical axes that several groups may shard at once.
        units: the number of indivisible units (heads) of a logical axis that consists of such: it must be a multiple of the group's size too.
    """

    prefer: Mapping[tuple[str, ...], tuple[str, ...]]
    together: tuple[str, ...] = ()
    units: Mapping[str, int] = field(default_factory=dict)

    def spec(self, axes: Axes, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> PartitionSpec:
        """Return the PartitionSpec of a weight. Vectors (not counting the axis of layers) are replicated: all-gathering them costs more than they save.

        Args:
            axes: the logical names of the weight's dimensions.
            shape: the sizes of the dimensions.
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
    """Return the mesh that is set, if it has this project's axes and several devices, and the caller is not inside a ``shard_map`` over it; else None."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh if mesh.axis_names == AXES and mesh.size > 1 and not mesh.manual_axes else None


def mesh_axes(name: str | None, length: int) -> tuple[str, ...]:
    """Return the axes of the mesh that is set over which ``length`` entries of an activation's logical axis are sharded; none where they do not divide it."""
    mesh = current_mesh()
    axes = () if mesh is None or name is None else tuple(axis for axis in ACTIVATIONS[name] if mesh.shape[axis] > 1)
    return axes if mesh is not None and length % devices_along(mesh, axes) == 0 else ()


def devices_of(name: str) -> int:
    """Return the number of devices of the mesh that is set over which an activation's logical axis may be sharded; 1 without a mesh."""
    mesh = current_mesh()
    return 1 if mesh is None else devices_along(mesh, ACTIVATIONS[name])


def constrain(x: R, *names: str | None) -> R:
    """Shard arrays by the logical names of their leading dimensions. Other dimensions, and those whose length does not divide, are replicated.

    Under ``over_samples`` the dimension of samples is sharded as well, so that even a call without names keeps XLA from moving samples between devices.

    Args:
        x: a tree of arrays that share their leading dimensions.
        names: for each leading dimension a key of ``ACTIVATIONS``, or None.

    Returns:
        The same arrays, with constraints on their shardings.
    """
    if current_mesh() is None:
        return x

    def place(a: jax.Array) -> jax.Array:
        axes = [mesh_axes(name, length) for name, length in zip(names, a.shape, strict=False)]
        return jax.lax.with_sharding_constraint(a, PartitionSpec(*(axis or None for axis in axes)))

    return jax.tree.map(place, x)


def pad_to_multiple(x: jax.Array, axes: Iterable[str]) -> jax.Array:
    """Append zeros to x [n, ...] until n is a multiple of the number of devices along some axes of the mesh that is set."""
    mesh = current_mesh()
    parts = 1 if mesh is None else devices_along(mesh, axes)
    return jnp.pad(x, ((0, -x.shape[0] % parts), *((0, 0),) * (x.ndim - 1)))


def over_samples(function: Callable[..., R]) -> Callable[..., R]:
    """Return ``jax.vmap`` of a function over the leading dimension of all arguments, which is sharded over the mesh axes of samples."""
    mesh = current_mesh()
    return jax.vmap(function, spmd_axis_name=None if mesh is None else BATCH)


def over_images(function: Callable[..., R]) -> Callable[..., R]:
    """Return ``jax.vmap`` of a function over the leading dimension of all arguments, which is sharded over the devices that share a sample."""
    mesh = current_mesh()
    return jax.vmap(function, spmd_axis_name=None if mesh is None else ACTIVATIONS[IMAGES])


WHOLE, SHARDED = "whole", "sharded"
"""The keys of a variable's metadata for how one layer of it is sharded while it is used, and while it is stored: the entries of a ``PartitionSpec``."""


def all_gathered(module: M) -> M:
    """Return a module with the same weights, all-gathered along ``fsdp`` and ``context`` for use; their gradients are reduce-scattered to the shards.

    Weights of stacked layers stay as they are, since each layer is all-gathered when it runs, and so do weights whose metadata name no sharding. Without this
    function, XLA may decide that activations are cheaper to move than weights, and move them in every product.
    """
    if current_mesh() is None:
        return module

    def gather(variable: Any) -> Any:
        metadata = variable.get_metadata()
        whole, own = metadata.get(WHOLE), metadata.get(SHARDED)
        value = variable.get_value()
        if whole == own or value.ndim != len(metadata["axes"]) - (LAYERS in metadata["axes"]):
            return variable
        return variable.replace(_gather(PartitionSpec(*whole), PartitionSpec(*own), value))

    return jax.tree.map(gather, module, is_leaf=lambda x: isinstance(x, nnx.Variable))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gather(whole: PartitionSpec, sharded: PartitionSpec, weight: jax.Array) -> jax.Array:
    return jax.lax.with_sharding_constraint(weight, whole)


def _gather_forward(whole: PartitionSpec, sharded: PartitionSpec, weight: jax.Array) -> tuple[jax.Array, None]:
    return _gather(whole, sharded, weight), None


def _gather_backward(whole: PartitionSpec, sharded: PartitionSpec, saved: None, d_weight: jax.Array) -> tuple[jax.Array]:
    # Told of the shards alone, XLA gathers the activations of all samples on each GPU and multiplies these, where each GPU's own products can be reduced.
    if platform() == "gpu":
        d_weight = jax.lax.with_sharding_constraint(d_weight, whole)
    return (jax.lax.with_sharding_constraint(d_weight, sharded),)


_gather.defvjp(_gather_forward, _gather_backward)


def bytes_per_device(tree: Any) -> int:
    """Return the bytes that each device holds of a tree of arrays or ``jax.ShapeDtypeStruct``s with shardings, without what lies in the hosts' memory."""
    held = [leaf for leaf in jax.tree.leaves(tree) if leaf.sharding.memory_kind != HOST_MEMORY]
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * jax.dtypes.itemsize_bits(leaf.dtype) // 8 for leaf in held)


def batch_spec(rank: int) -> PartitionSpec:
    """Return the PartitionSpec of an array [B, ...] of samples with ``rank`` dimensions."""
    return PartitionSpec(BATCH, *[None] * (rank - 1))
