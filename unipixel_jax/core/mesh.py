"""Meshes: how the devices of a job are arranged, by preset.

Every mesh has the same four axes, most of them often of size 1, so that one table of rules (core/sharding.py) serves all presets.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh

from unipixel_jax.errors import UserError

DATA, FSDP, CONTEXT, TENSOR = "data", "fsdp", "context", "tensor"
AXES = (DATA, FSDP, CONTEXT, TENSOR)
"""The mesh axes. Samples are sharded over ``data`` and ``fsdp``, and weights over ``fsdp``; devices along ``context`` and ``tensor`` share samples, and weights
are sharded over them too."""
WEIGHTS = (FSDP, CONTEXT)
"""The mesh axes over which, together, every matrix is sharded."""
Preset = Literal["single", "dp", "fsdp", "fsdp_tp", "hybrid"]


@dataclass(frozen=True)
class MeshConfig:
    """How devices are arranged.

    Attributes:
        preset: "single" uses one device; "dp" replicates all weights on every device; "fsdp" shards weights and optimizer state over all devices (ZeRO-3,
            arXiv 1910.02054); "fsdp_tp" also shards the products of the language model over ``tensor`` devices; "hybrid" shards weights within a
            slice and replicates them in every slice, so that only gradients pass between slices.
        tensor: devices that share the heads, feed-forward columns and vocabulary of the language model; more than 1 with "fsdp_tp" only.
        context: devices that share the tokens of a conversation and the frames of a clip, for long ones.
        slices: for "hybrid", the number of groups of devices with a fast network inside; None asks the devices.
    """

    preset: Preset = "fsdp"
    tensor: int = 1
    context: int = 1
    slices: int | None = None

    def __post_init__(self) -> None:
        for name in ("tensor", "context", "slices"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"mesh.{name} is {value}, expected at least 1")
        if (self.tensor > 1) != (self.preset == "fsdp_tp"):
            raise UserError(f"mesh.tensor is {self.tensor} with the preset {self.preset!r}: fsdp_tp needs at least 2, and the others 1")
        if self.slices is not None and self.preset != "hybrid":
            raise UserError(f"mesh.slices is {self.slices} with the preset {self.preset!r}: only hybrid tells slices apart")

    def sizes(self, devices: int, slices: int = 1) -> dict[str, int]:
        """Return the size of every mesh axis.

        Args:
            devices: the number of all devices.
            slices: the number of slices that the devices form, used where the configuration leaves it open.

        Raises:
            UserError: no mesh with these sizes has that number of devices.
        """
        if self.preset == "single":
            devices = 1
        slices = (self.slices or slices) if self.preset == "hybrid" else 1
        together = {"slices": slices, "context": self.context, "tensor": self.tensor}
        rest, left = divmod(devices, math.prod(together.values()))
        if left or not rest:
            named = " x ".join(f"{name} {size}" for name, size in together.items() if size > 1)
            raise UserError(f"a mesh of {named} does not divide {devices} devices: choose sizes whose product divides {devices}, or use other devices")
        data, fsdp = {"dp": (rest, 1), "hybrid": (slices, rest)}.get(self.preset, (1, rest))
        return {DATA: data, FSDP: fsdp, CONTEXT: self.context, TENSOR: self.tensor}


def mesh_sizes(config: MeshConfig, devices: Sequence[jax.Device]) -> dict[str, int]:
    """Return the size of every axis of the mesh of some devices.

    Raises:
        UserError: no such mesh has that number of devices, "hybrid" is asked for over one slice, or several slices (of TPUs, or with "hybrid") would not lie
            along ``data``.
    """
    found = _slices(devices)
    if config.preset == "hybrid" and max(config.slices or 1, found) < 2:
        raise UserError("the preset 'hybrid' needs at least 2 slices, and the devices form 1: use fsdp, or set mesh.slices")
    sizes = config.sizes(len(devices), found)
    if config.preset == "single" or sizes[DATA] % found == 0:
        return sizes
    if config.preset == "hybrid":
        raise UserError(f"mesh.slices is {config.slices}, and the devices form {found} slices: leave it out, or choose a multiple of {found}")
    if devices[0].platform == "tpu":
        raise UserError(f"the preset {config.preset!r} would divide weights over {found} slices: use --mesh.preset hybrid, which divides them within each")
    return sizes


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device]) -> Mesh:
    """Return the mesh of some devices, in which neighbours on the devices' network lie beside each other along the inner axes.

    Raises:
        UserError: see ``mesh_sizes``.
    """
    sizes = mesh_sizes(config, devices)
    devices = devices[: math.prod(sizes.values())]
    found = _slices(devices)
    shape = tuple(sizes.values())
    if found > 1 and sizes[DATA] % found == 0:
        within = (sizes[DATA] // found, *shape[1:])
        array = mesh_utils.create_hybrid_device_mesh(within, (found, 1, 1, 1), devices, allow_split_physical_axes=True)
    elif devices[0].platform == "tpu":
        array = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        array = np.array(devices).reshape(shape)
    return Mesh(array, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _slices(devices: Sequence[jax.Device]) -> int:
    return len({getattr(device, "slice_index", 0) for device in devices})


TPU_OPTIONS = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": 1 << 20}
"""XLA's default would multiply by sharded weights shard by shard as the shards arrive (windowed einsum), and so read or write the activations, which are the
larger array, once for every shard. With a threshold that no array reaches, XLA all-gathers the weights first."""


def compiler_options(mesh: Mesh) -> dict[str, Any] | None:
    """Return the ``compiler_options`` of ``jax.jit`` for the devices of a mesh."""
    return TPU_OPTIONS if mesh.devices.flat[0].platform == "tpu" else None


@dataclass(frozen=True)
class OnMesh:
    """A function of ``jax.jit`` that is traced, lowered and called with its mesh set (``jax.set_mesh``)."""

    mesh: Mesh
    function: Any

    def __call__(self, *arguments: Any) -> Any:
        """Call the function."""
        with jax.set_mesh(self.mesh):
            return self.function(*arguments)

    def lower(self, *arguments: Any) -> Any:
        """Lower the function for arguments or their shapes; the devices of the mesh may be absent from this machine."""
        with jax.set_mesh(self.mesh):
            return self.function.lower(*arguments)


def devices_along(mesh: Mesh | AbstractMesh, axes: Iterable[str]) -> int:
    """Return the number of devices along some mesh axes together."""
    return math.prod(mesh.shape[axis] for axis in axes)


def data_shards(mesh: Mesh) -> int:
    """Return the number of shards of the samples of a batch."""
    return devices_along(mesh, (DATA, FSDP))


def devices_per_sample(mesh: Mesh) -> int:
    """Return the number of devices that share a sample."""
    return devices_along(mesh, (CONTEXT, TENSOR))
