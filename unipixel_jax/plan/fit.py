"""The best plan that fits: meshes, batches and remat policies tried one after the other, each compiled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from unipixel_jax.config import UniPixelConfig
from unipixel_jax.core.mesh import MeshConfig
from unipixel_jax.errors import UserError
from unipixel_jax.plan.plan import GRADIENTS, make_plan
from unipixel_jax.plan.programs import Workload
from unipixel_jax.plan.report import PlanReport
from unipixel_jax.plan.topology import Topology
from unipixel_jax.train.config import TrainConfig

SHARED = (1, 2, 4, 8)
"""Chips that may share a sample."""


def candidates(config: TrainConfig, topology: Topology) -> Iterator[TrainConfig]:
    """Plans of the same samples a step, those first that are likely to be fastest: as many samples at once as there are, little computed again, chips
    that share no sample.
    """
    chips, step = len(topology.devices), config.batch_size * config.accumulation
    hybrid = topology.slices > 1
    for context in SHARED:
        shards = chips // context
        if chips % context or step % shards:
            continue
        mesh = MeshConfig("hybrid" if hybrid else "fsdp", context=context)
        for remat in ("dots", "full"):
            batch = step
            while batch >= shards:
                if step % batch == 0 and batch % shards == 0:
                    yield replace(config, mesh=mesh, batch_size=batch, accumulation=step // batch, remat=remat)
                batch //= 2


def fit(config: TrainConfig, model_config: UniPixelConfig, topology: Topology, workload: Workload, most: int = 6) -> tuple[TrainConfig, list[PlanReport]]:
    """The plan with the shortest step by roofline, of those tried, and the reports of all in the order of the search.

    The search goes from large batches to small ones and stops along each mesh where a plan fits, since a smaller batch only repeats the collectives.

    Args:
        config: its product of batch size and accumulation is kept.
        model_config: sizes of the model.
        topology: the chips.
        workload: what every sample holds.
        most: compilations at most.

    Raises:
        UserError: nothing that was tried fits; the message says what came closest.
    """
    tried: list[tuple[TrainConfig, PlanReport]] = []
    settled: set[tuple[MeshConfig, str]] = set()
    for candidate in candidates(config, topology):
        if (candidate.mesh, candidate.remat) in settled or len(tried) == most:
            continue
        report = make_plan(candidate, model_config, topology, workload, (GRADIENTS,))
        tried.append((candidate, report))
        if report.programs[0].memory.fits:
            settled.add((candidate.mesh, candidate.remat))
            if candidate.remat == "dots" or candidate.mesh.context > 1:
                break
    fitting = [(one, report) for one, report in tried if report.programs[0].memory.fits]
    reports = [report for _, report in tried]
    if not fitting:
        if not tried:
            step = config.batch_size * config.accumulation
            raise UserError(f"{step} samples a step do not divide among {len(topology.devices)} chips: choose a multiple, or fewer chips")
        near, report = min(tried, key=lambda pair: pair[1].programs[0].memory.total)
        memory = report.programs[0].memory
        raise UserError(
            f"nothing that was tried fits {topology.name}: the nearest, mesh {report.mesh_text}, batch {near.batch_size}, remat {near.remat}, needs "
            f"{memory.total / 2**30:.2f} GiB of {memory.capacity / 2**30:.2f} a chip. Use more chips, fewer --tokens or fewer --frames"
        )
    return min(fitting, key=lambda pair: step_seconds(*pair))[0], reports


def step_seconds(config: TrainConfig, report: PlanReport) -> float:
    """Roofline's time of a step's gradients."""
    roofline = report.programs[0].roofline
    assert roofline is not None, "it fits, so it was compiled"
    return config.accumulation * roofline.seconds
