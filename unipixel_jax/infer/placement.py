"""Where the weights lie for inference: whole on each device where they fit, and else divided among the fewest devices that hold them together.

A step of generation reads all weights of the language model for one token of each answer, so it is bound by the bytes that each device reads. Devices with
whole weights divide the work and send each other nothing. Devices that share a copy divide the products of each layer (``fsdp_tp``), and send each other the
activations of a few tokens. Weights are never all-gathered, which would send all of them for each token.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from unipixel_jax.config import UniPixelConfig
from unipixel_jax.core.accelerators import usable_memory
from unipixel_jax.core.mesh import AXES, MeshConfig, make_mesh
from unipixel_jax.core.sharding import bytes_per_device
from unipixel_jax.errors import UserError
from unipixel_jax.models.partition import partitioned, tensor_sizes
from unipixel_jax.models.unipixel import abstract_model

log = logging.getLogger(__name__)

WEIGHTS_SHARE = 0.8
"""The share of a device's memory that weights may take: the rest is for the cache, activations and programs."""
MOST_SHARE = 0.95
"""The share beyond which nothing could run beside the weights, so that they are refused."""


@dataclass(frozen=True)
class Placement:
    """How the devices of a machine hold the weights.

    Attributes:
        tensor: number of devices that share a copy of the weights.
        copies: number of copies, which divide photos and prompts among them.
        weights: bytes of the weights on each device.
        memory: bytes of a device that programs may use; None where devices have no memory of their own (CPUs).
    """

    tensor: int
    copies: int
    weights: int
    memory: float | None

    @property
    def mesh(self) -> MeshConfig | None:
        """The mesh of the devices that share a copy; None for a single one."""
        return MeshConfig("fsdp_tp", tensor=self.tensor) if self.tensor > 1 else None

    @property
    def roomy(self) -> bool:
        """Whether the weights leave enough room beside them."""
        return self.memory is None or self.weights <= WEIGHTS_SHARE * self.memory

    def __str__(self) -> str:
        size = f"{self.weights / 1e9:.2f} GB"
        room = f"{size}, in the memory of the host" if self.memory is None else f"{size} of a device's {self.memory / 1e9:.1f} GB"
        shared = f"each copy of the weights divided among {self.tensor} devices (fsdp_tp, tensor {self.tensor})"
        held = "whole weights on a device" if self.tensor == 1 else shared
        return f"{held} ({room}), {self.copies} {'copy' if self.copies == 1 else 'copies'}"


def choose_placement(config: UniPixelConfig, dtype: Any, devices: int, memory: float | None) -> Placement:
    """Return the placement with the fewest devices for a copy whose weights leave enough room; where there is none, the one that divides the weights most.

    Args:
        config: the model's configuration.
        dtype: the dtype of the weights; None for that of the configuration.
        devices: number of devices of the machine.
        memory: bytes of each that programs may use; None where devices have no memory of their own.
    """
    found = [placement(config, dtype, devices, memory, tensor) for tensor in (1, *tensor_sizes(config, devices))]
    return next((one for one in found if one.roomy), found[-1])


def placement(config: UniPixelConfig, dtype: Any, devices: int, memory: float | None, tensor: int) -> Placement:
    """Return the placement in which ``tensor`` devices share a copy; the other arguments are those of ``choose_placement``.

    Raises:
        UserError: the heads do not divide among so many devices.
    """
    mesh = AbstractMesh((1, 1, 1, tensor), AXES)
    model = partitioned(abstract_model(config), config, mesh, jnp.dtype(dtype or config.dtype))
    return Placement(tensor, devices // tensor, bytes_per_device(model), memory)


def inference_mesh(config: UniPixelConfig, dtype: Any, devices: Sequence[jax.Device]) -> Mesh | None:
    """Return the mesh of the devices that share the first copy of the weights, chosen by their memory; None for a single device.

    Args:
        config: the model's configuration.
        dtype: the dtype of the weights; None for that of the configuration.
        devices: the devices of this machine that may be used.

    Raises:
        UserError: the weights do not fit these devices together.
    """
    chosen = choose_placement(config, dtype, len(devices), usable_memory(devices[0]))
    if chosen.memory is not None and chosen.weights > MOST_SHARE * chosen.memory:
        needed, there = chosen.weights / 1e9, chosen.memory / 1e9
        raise UserError(
            f"the weights would take {needed:.1f} GB on each device, divided among {chosen.tensor}, and a device has {there:.1f} GB: use more devices, "
            "--dtype bfloat16 or a smaller model"
        )
    alone = placement(config, dtype, len(devices), chosen.memory, 1)
    why = "they fit" if chosen.tensor == 1 else f"whole ones would take {alone.weights / 1e9:.2f} GB, more than {WEIGHTS_SHARE:.0%} of a device's memory"
    log.info("%s: %s", chosen, why)
    return None if chosen.mesh is None else make_mesh(chosen.mesh, devices[: chosen.tensor])


def shared_by(tensor: int | None) -> dict[str, Any]:
    """Return the arguments ``mesh`` and ``devices`` of ``UniPixel.from_pretrained`` for the option ``--tensor``; None leaves the choice to it."""
    if tensor is None:
        return {}
    return {"mesh": MeshConfig("fsdp_tp", tensor) if tensor > 1 else MeshConfig("single"), "devices": tensor}
