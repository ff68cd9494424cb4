"""Topologies: TPU slices and hosts with GPUs by name, and their devices to compile for."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import jax

from unipixel_jax.core.accelerators import CHIPS, Chip, absent_devices
from unipixel_jax.errors import UserError

_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
SHAPES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"v5e": _FLAT, "v6e": _FLAT, "v5p": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")},
)
"""The slice shapes that Google Cloud offers (cloud.google.com/tpu/docs/v5e, v6e, v5p), those of v5p up to 512 chips."""

_CORES = {"v5e": 1, "v6e": 1, "v5p": 2}
ACCELERATOR_TYPES: Mapping[str, str] = MappingProxyType(
    {f"{chip}-{math.prod(map(int, shape.split('x'))) * _CORES[chip]}": f"{chip}:{shape}" for chip, shapes in SHAPES.items() for shape in shapes},
)
"""Google's accelerator types and their shapes: "v6e-16" has 16 chips, but "v5p-16" has 8, since it counts TensorCores, of which a v5p chip has two.

"v5e-16" is the "v5litepod-16" of Google's commands.
"""

_MOST_CARDS = 8
"""The most GPUs of one host that NVLink joins, as in a DGX A100 or H100."""


@dataclass(frozen=True)
class Topology:
    """Chips that a program is compiled for.

    Attributes:
        name: the name by which it was asked for.
        chip: the figures of one chip's data sheet.
        devices: the devices to make a mesh of, one slice after the other.
        slices: number of slices. The chips of a slice are joined by ICI, and slices by the data center's network (for GPUs a slice is a host, joined inside by
            NVLink).
        hosts: number of machines, each of which runs a process.
        links: bytes per second that a chip sends inside its slice, one way, over the links that lead to another chip of the slice. That is less than
            ``chip.links`` for small slices: a chip of a v5e:2x2 has two neighbours, and four in a v5e:4x4, where the links of the border are counted as well.
        network: bytes per second that a chip sends to other slices.
    """

    name: str
    chip: Chip
    devices: tuple[jax.Device, ...]
    slices: int
    hosts: int
    links: float
    network: float

    @property
    def slice_of(self) -> tuple[int, ...]:
        """The slice of each device, in the order of ``devices``."""
        each = len(self.devices) // self.slices
        return tuple(i // each for i in range(len(self.devices)))


def open_topology(name: str) -> Topology:
    """Return a topology of chips that need not be here, to compile for.

    After this call the process computes on the CPU (``core.accelerators.absent_devices``).

    Args:
        name: a chip and a shape of ``SHAPES``, such as "v5e:8x8", "v5p:2x2x4" or "v6e:4x4", or one of ``ACCELERATOR_TYPES``, either with "2*" before it for
            several slices; or "h100:8" or "a100:8" for the GPUs of a host, "h100:2x8" for hosts x GPUs of each.

    Raises:
        UserError: the name is unknown, or the chip's compiler is not installed.
    """
    several, chip, shape = _split(name)
    devices = absent_devices(chip, shape, several)
    sizes = [int(n) for n in shape.split("x")]
    if CHIPS[chip].platform == "gpu":
        slices = hosts = sizes[0]
        links = CHIPS[chip].links if sizes[1] > 1 else 0.0
    else:
        slices, hosts = several, _tpu_hosts(sizes) * several
        links = CHIPS[chip].links * sum(min(n - 1, 2) for n in sizes) / (6 if chip == "v5p" else 4)
    return Topology(name, CHIPS[chip], devices, slices, hosts, links, CHIPS[chip].network)


def _tpu_hosts(sizes: list[int]) -> int:
    """Return the number of machines of a slice.

    Up to 8 chips of a v5e or v6e are on one machine (Google's "hightpu-8t"). Larger slices, and all of v5p, have 4 chips on each machine ("hightpu-4t").
    """
    chips = math.prod(sizes)
    return 1 if len(sizes) == 2 and chips <= 8 else chips // 4


def _split(name: str) -> tuple[int, str, str]:
    """Return the number of slices, the chip and the shape that a topology's name stands for."""
    several = re.match(r"(\d+)\*", name)
    slices = int(several.group(1)) if several else 1
    single = name[several.end() :] if several else name
    long_name = ACCELERATOR_TYPES.get(re.sub(r"^v5litepod-", "v5e-", single), single)
    chip, _, shape = long_name.partition(":")
    if slices >= 1 and shape in SHAPES.get(chip, ()):
        return slices, chip, shape
    cards = re.fullmatch(r"(?:([1-9]\d*)x)?([1-9]\d*)", shape)
    if several is None and chip in CHIPS and CHIPS[chip].platform == "gpu" and cards and int(cards.group(2)) <= _MOST_CARDS:
        return 1, chip, f"{cards.group(1) or 1}x{cards.group(2)}"
    raise UserError(_unknown(name, single))


def _unknown(name: str, single: str) -> str:
    gpus = [chip for chip in CHIPS if CHIPS[chip].platform == "gpu"]
    known = [*(f"{chip}:{shape}" for chip, shapes in SHAPES.items() for shape in shapes), *ACCELERATOR_TYPES, *(f"{gpu}:8" for gpu in gpus)]
    near = difflib.get_close_matches(single.lower(), known, 1, 0.5)
    shapes = "; ".join(f"{chip}:{{{','.join(shapes)}}}" for chip, shapes in SHAPES.items())
    hint = f"did you mean {near[0]!r}? " if near else ""
    types = "a type such as v5e-16, v5p-16 or v6e-16"
    cards = f"{' or '.join(gpus)} with up to {_MOST_CARDS} cards a host ({gpus[0]}:8, {gpus[0]}:2x8)"
    return f"topology {name!r} is unknown: {hint}Expected {shapes}; {types}; '2*' before any of these for slices; or {cards}"
