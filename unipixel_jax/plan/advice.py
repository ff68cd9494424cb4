"""Advice where a program does not fit: arguments of ``unipixel-jax plan`` that need less memory and that the command accepts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from jax.sharding import AbstractMesh

from unipixel_jax.config import UniPixelConfig
from unipixel_jax.core.mesh import AXES, DATA, FSDP, mesh_sizes
from unipixel_jax.errors import UserError
from unipixel_jax.models.partition import check_heads, tensor_sizes
from unipixel_jax.plan.programs import GRADIENTS, LANGUAGE, UPDATE
from unipixel_jax.plan.report import PlanReport, Serving
from unipixel_jax.plan.serving import TRACK
from unipixel_jax.plan.topology import Topology
from unipixel_jax.train.config import TrainConfig

Change = Mapping[str, Any]
"""New values of configuration fields or arguments by name, such as {"mesh.context": 2}."""


def advice(report: PlanReport, config: TrainConfig, model_config: UniPixelConfig, topology: Topology) -> list[str]:
    """Return a line for each program that does not fit: by how much it does not, and which arguments would help.

    Args:
        report: the report of the plan.
        config: the configuration that was planned.
        model_config: the model's sizes.
        topology: the chips that were planned for.
    """
    lines = []
    for program in report.programs:
        if program.memory.fits:
            continue
        over = (program.memory.total - program.memory.capacity) / 2**30
        helps = ["More chips to shard the weights over", "fewer trained weights"] if program.name == UPDATE else ["More chips"]
        found = []
        served = program.serving
        ways = _ways(program.name, config) if served is None else _serving_ways(program.name, served, tensor_sizes(model_config, len(topology.devices)))
        for way in ways:
            taken = next((change for change in way if served is not None or _accepted(change, config, model_config, topology)), None)
            if taken is not None:
                found.append(" ".join(f"--{name.replace('_', '-')} {value}" for name, value in taken.items()))
        if found:
            helps.append(f"one of: {'; '.join(found)}")
        lines.append(f"{program.name} does not fit: {over:.2f} GiB too much. {', or '.join(helps)}")
    return lines


def _serving_ways(program: str, served: Serving, sizes: list[int]) -> Iterator[list[Change]]:
    """Yield the changes with which a program of inference needs less memory: fewer answers at once, and more chips, of those in ``sizes``, for a copy."""
    if program != TRACK and served.together > 1:
        yield [{"prompts": served.together // 2}]
    yield [{"tensor": size} for size in sizes if size > served.tensor]


def _ways(program: str, config: TrainConfig) -> Iterator[list[Change]]:
    """Yield, for each way to need less memory, its changes from the mildest on; the first that the command accepts is the one to advise."""
    mesh, batch = config.mesh, config.batch_size
    wider = {"mesh.context": 2 * mesh.context}
    if program in (GRADIENTS, LANGUAGE):
        if config.remat != "full":
            yield [{"remat": "full"}]
        fewer = [{"batch_size": n, "accumulation": config.accumulation * batch // n} for n in range(batch - 1, 0, -1) if batch % n == 0]
        # A larger context helps only with fewer samples at once: half as many parts of the mesh, with twice the samples each, need as much memory as before.
        yield [*fewer, *(wider | samples for samples in fewer)]
    yield [{"mesh.preset": preset} for preset in ("fsdp", "hybrid") if preset != mesh.preset]


def _accepted(change: Change, config: TrainConfig, model_config: UniPixelConfig, topology: Topology) -> bool:
    """Return whether the chips form the changed mesh, and heads and batch divide among its parts."""
    try:
        mesh = replace(config.mesh, **{name.removeprefix("mesh."): value for name, value in change.items() if name.startswith("mesh.")})
        sizes = mesh_sizes(mesh, topology.devices)
        check_heads(model_config, AbstractMesh(tuple(sizes.values()), AXES))
    except UserError:
        return False
    shards = sizes[DATA] * sizes[FSDP]
    return change.get("batch_size", config.batch_size) % shards == 0
