"""The memory that a compiled program needs on one chip."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax

from unipixel_jax.core.accelerators import Chip
from unipixel_jax.core.sharding import HOST_MEMORY

GIB = 2**30
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

_USABLE: Mapping[str, float] = MappingProxyType({"TPU v5 lite": 15.75 * GIB, "TPU v5": 95.74 * GIB, "TPU v6 lite": 31.25 * GIB})
"""The usable bytes by ``Chip.kind``: what the TPU compiler (libtpu 0.0.42) says is available where it refuses a program."""

_GPU_SHARE = 0.95
"""The share of a GPU's memory that the launchers let JAX take (XLA_PYTHON_CLIENT_MEM_FRACTION); by itself JAX takes three quarters."""

ARGUMENTS, RESULTS, TEMPORARY, PROGRAM, NEEDED = "other arguments", "results", "temporaries", "program", "needed"


@dataclass(frozen=True)
class Memory:
    """The memory that a program needs on one chip.

    Attributes:
        parts: bytes per chip by name: the parts that the caller names, and those that ``read_memory`` adds. Of a program that the compiler refused, only
            ``NEEDED`` is known.
        capacity: bytes of a chip that a program may use.
    """

    parts: Mapping[str, float]
    capacity: float

    @property
    def total(self) -> float:
        """The bytes per chip of all parts together."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """Whether a chip has that many bytes."""
        return self.total <= self.capacity


def usable(chip: Chip) -> float:
    """Return the bytes of a chip that a program may use: what the TPU compiler leaves, or what the launchers let JAX take of a GPU's."""
    return _USABLE.get(chip.kind, _GPU_SHARE * chip.memory)


def bytes_per_chip(tree: Any) -> int:
    """Return the bytes that each chip holds of a tree of arrays or ``jax.ShapeDtypeStruct``s with shardings. What lies in the hosts' memory is not counted."""
    held = [leaf for leaf in jax.tree.leaves(tree) if leaf.sharding.memory_kind != HOST_MEMORY]
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * jax.dtypes.itemsize_bits(leaf.dtype) // 8 for leaf in held)


def read_memory(compiled: jax.stages.Compiled, named: Mapping[str, float], chip: Chip) -> Memory:
    """Return what a program needs, by XLA's own account (``compiled.memory_analysis()``).

    Args:
        compiled: a program for one or many of these chips.
        named: parts of the arguments that the caller has names for, such as {"parameters": bytes per chip}. The rest of the arguments, which includes the
            padding of tiles, becomes ``ARGUMENTS``.
        chip: the chip whose memory is the capacity.

    Returns:
        The named parts, then ``ARGUMENTS``, ``RESULTS`` (without those that overwrite donated arguments), ``TEMPORARY`` and ``PROGRAM`` (the code).
    """
    found = compiled.memory_analysis()
    assert found is not None, "the compilers for TPUs and GPUs report memory"
    parts = {
        **named,
        ARGUMENTS: max(0.0, found.argument_size_in_bytes - sum(named.values())),
        RESULTS: max(0.0, found.output_size_in_bytes - found.alias_size_in_bytes),
        TEMPORARY: found.temp_size_in_bytes,
        PROGRAM: found.generated_code_size_in_bytes,
    }
    return Memory(parts, usable(chip))


def refused_for_memory(error: Exception) -> Memory | None:
    """Read what a program would need from the error with which the TPU compiler refuses it; None for any other error."""
    text = str(error)
    amount = r"([\d.]+)([KMGT]?)"
    found = re.search(rf"\({amount}\) exceeds available HBM \({amount}\)", text) or re.search(rf"Used {amount} of {amount} hbm", text)
    if found is None or "RESOURCE_EXHAUSTED" not in text:
        return None
    needed, needed_unit, available, available_unit = found.groups()
    return Memory({NEEDED: float(needed) * _UNITS[needed_unit]}, float(available) * _UNITS[available_unit])
