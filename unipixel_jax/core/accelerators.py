"""The accelerators that are known: their peak figures, and devices to compile for on a machine that has none of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, Mesh

from unipixel_jax.errors import UserError


@dataclass(frozen=True)
class Chip:
    """An accelerator and its peak figures.

    Attributes:
        platform: "tpu" or "gpu".
        kind: the ``jax.Device.device_kind`` of a TPU, or a part of it for a GPU.
        flops: peak FLOP/s of the matrix units with bfloat16 operands.
        bandwidth: bytes per second between the matrix units and the device's memory.
        memory: bytes of the device's memory.
        links: bytes per second that it sends to its neighbours over all of its links together, one way: ICI of a TPU, NVLink of a GPU.
        network: bytes per second that it sends over the data center's network to other slices (TPU) or hosts (GPU): its share of the host's network cards.
        topology: the smallest shape that the compiler knows, for a TPU; the description of the card that XLA compiles for, for a GPU.
    """

    platform: str
    kind: str
    flops: float
    bandwidth: float
    memory: float
    links: float
    network: float
    topology: str


LEAST_EFFORT = {"exec_time_optimization_effort": -1.0}
"""Options with which the TPU compiler is eight times faster. It then keeps nothing in VMEM from one operation to the next, so that the plan's memory traffic is
too high and its memory somewhat too low (docs/plan.md)."""

_USABLE: Mapping[str, float] = MappingProxyType({"TPU v5 lite": 15.75 * 2**30, "TPU v5": 95.74 * 2**30, "TPU v6 lite": 31.25 * 2**30})
"""The usable bytes by ``Chip.kind``: what the TPU compiler (libtpu 0.0.42) says is available where it refuses a program."""

_GPU_SHARE = 0.95
"""The share of a GPU's memory that the launchers let JAX take (XLA_PYTHON_CLIENT_MEM_FRACTION); by itself JAX takes three quarters."""

_GPU = """gpu_device_info {{ cuda_compute_capability {{ major: {major} minor: 0 }} threads_per_block_limit: 1024 threads_per_warp: 32
shared_memory_per_block: 49152 shared_memory_per_core: {per_core} threads_per_core_limit: 2048 core_count: {cores} fpus_per_core: {fpus}
block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: {bandwidth} l2_cache_size: {l2}
clock_rate_ghz: {clock} device_memory_size: {memory} shared_memory_per_block_optin: {optin} registers_per_core_limit: 65536
registers_per_block_limit: 65536 }}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 8 }} device_description_str: "{name}" """

_H100 = _GPU.format(
    major=9, per_core=233472, cores=132, fpus=128, bandwidth=3352320000000, l2=52428800, clock=1.98, memory=84978434048, optin=232448,
    name="NVIDIA H100 80GB HBM3",
)  # fmt: skip
_A100 = _GPU.format(
    major=8, per_core=167936, cores=108, fpus=64, bandwidth=2039000000000, l2=41943040, clock=1.41, memory=85000000000, optin=166912,
    name="NVIDIA A100-SXM4-80GB",
)  # fmt: skip

CHIPS: Mapping[str, Chip] = MappingProxyType(
    {
        "v5e": Chip("tpu", "TPU v5 lite", 197e12, 819e9, 16e9, 200e9, 3.125e9, "2x2"),
        "v5p": Chip("tpu", "TPU v5", 459e12, 2765e9, 95e9, 600e9, 6.25e9, "2x2x1"),
        "v6e": Chip("tpu", "TPU v6 lite", 918e12, 1640e9, 32e9, 400e9, 12.5e9, "2x2"),
        "h100": Chip("gpu", "H100", 989e12, 3352e9, 80e9, 450e9, 50e9, _H100),
        "a100": Chip("gpu", "A100", 312e12, 2039e9, 80e9, 300e9, 25e9, _A100),
    }
)
"""The chips by name. Figures are from Google Cloud's pages on each TPU (cloud.google.com/tpu/docs/v5e, v5p, v6e) and NVIDIA's data sheets (SXM, dense).

Links are half of the pages' "bidirectional" figures: ICI of 400, 1200 and 800 GB/s, NVLink of 900 and 600 GB/s. "How to Scale Your Model"
(jax-ml.github.io/scaling-book/tpus) counts on a tenth less: 45, 90 and 90 GB/s for each of the 4, 6 and 4 links. The network of TPUs is that of the pages: two
cards of 100 Gbit/s for the 8 chips of a v5e host, 50 Gbit/s a chip of v5p, four cards of 200 Gbit/s for the 8 chips of a v6e host. A DGX H100 has a
card of 400 Gbit/s for each GPU, a DGX A100 one of 200.
"""


def usable(chip: Chip) -> float:
    """Return the bytes of a chip that a program may use: what the TPU compiler leaves, or what the launchers let JAX take of a GPU's."""
    return _USABLE.get(chip.kind, _GPU_SHARE * chip.memory)


def usable_memory(device: jax.Device) -> float | None:
    """Return the bytes of a device that programs may use: what the device says or, where it does not, what its data sheet says; None for a CPU, whose devices
    share the memory of the host, and for devices that are not known.
    """
    if device.platform == "cpu":
        return None
    told = (device.memory_stats() or {}).get("bytes_limit")
    known = (usable(chip) for chip in CHIPS.values() if chip.platform in ("tpu", "gpu") and _same_kind(chip, device.device_kind))
    return float(told) if told else next(known, None)


def is_here(name: str) -> bool:
    """Return whether this machine's devices are chips of that name.

    JAX is asked only where the operating system shows devices of the platform, because JAX's search for a platform that is absent is slow and prints warnings.
    """
    chip = CHIPS[name]
    nodes = ("accel*", "vfio/[0-9]*") if chip.platform == "tpu" else ("nvidia[0-9]*",)
    return any(node for pattern in nodes for node in Path("/dev").glob(pattern)) and _same_kind(chip, jax.devices()[0].device_kind)


def _same_kind(chip: Chip, kind: str) -> bool:
    return kind == chip.kind if chip.platform == "tpu" else chip.kind in kind


def abstract_mesh(name: str) -> AbstractMesh:
    """Return a mesh of one device of a chip, for which programs can be traced and lowered without the chip and its compiler.

    Raises:
        UserError: an unknown chip.
    """
    chip = _chip(name)
    return AbstractMesh((1,), ("x",), axis_types=(AxisType.Auto,), abstract_device=AbstractDevice(chip.kind, None, chip.platform))


def _chip(name: str) -> Chip:
    if name not in CHIPS:
        raise UserError(f"chip {name!r} is unknown: expected one of {', '.join(CHIPS)}")
    return CHIPS[name]


def compile_mesh(name: str) -> Mesh:
    """Return a mesh of one device of a chip that this machine does not have. Programs lowered inside ``jax.set_mesh`` of it can be compiled, but not run.

    Raises:
        UserError: an unknown chip, or its compiler is not installed.
    """
    chip = _chip(name)
    shape = chip.topology if chip.platform == "tpu" else "1x1"
    return Mesh(np.array(absent_devices(name, shape)[:1]), ("x",), axis_types=(AxisType.Auto,))


def absent_devices(name: str, shape: str, slices: int = 1) -> tuple[jax.Device, ...]:
    """Return devices to compile for, of chips that this machine does not have; the devices of one slice follow those of the slice before.

    From then on this process computes on the CPU, and keeps no compiled programs on disk, because programs for absent chips cannot be read back.

    Args:
        name: a key of ``CHIPS``.
        shape: how the chips of a slice are arranged, such as "4x4" or "2x2x4"; for GPUs the hosts and the cards of each host, such as "1x8".
        slices: how many slices of TPUs there are.

    Raises:
        UserError: the chip's compiler is not installed, or does not know the shape.
    """
    chip = CHIPS[name]
    # Without these variables, the TPU's library looks for the TPU that it runs on, and allows one process at a time.
    quiet = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5p-16", "TPU_STDERR_LOG_LEVEL": "3"}
    os.environ.update({**quiet, "TPU_MIN_LOG_LEVEL": "3", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"})
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        if chip.platform == "tpu":
            several = {"num_slices": slices} if slices > 1 else {}
            # A single chip is a host of its own, where the compiler assumes hosts of four chips by default.
            alone = {"chips_per_host_bounds": [1, 1, 1]} if shape == "1x1" else {}
            found = topologies.get_topology_desc(platform="tpu", topology_name=f"{name}:{shape}", **several, **alone)
        else:
            found = topologies.get_topology_desc(platform="cuda", topology_name="", target_config=chip.topology, topology=f"1x{shape}")
    except (RuntimeError, ValueError, ImportError, NotImplementedError) as error:
        extra = "tpu" if chip.platform == "tpu" else "cuda"
        first = str(error).splitlines()[0]
        raise UserError(f"nothing here compiles for {name}:{shape} ({first}): pip install 'unipixel-jax[{extra}]'") from None
    return tuple(sorted(found.devices, key=lambda device: getattr(device, "slice_index", None) or 0))
