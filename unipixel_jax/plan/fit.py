"""The best plan that fits: how many chips must share a sample, and then the fastest mesh, batch and remat policy for so many. Each plan tried is compiled."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from jax.sharding import AbstractMesh

from unipixel_jax.config import UniPixelConfig
from unipixel_jax.core.mesh import AXES, DATA, MeshConfig
from unipixel_jax.core.stacking import Remat
from unipixel_jax.errors import UserError
from unipixel_jax.models.partition import check_heads
from unipixel_jax.plan.plan import GRADIENTS, make_plan
from unipixel_jax.plan.programs import Workload
from unipixel_jax.plan.report import PlanReport
from unipixel_jax.plan.topology import Topology
from unipixel_jax.train.config import TrainConfig

GROUP = 16
"""Chips of a larger slice that divide weights among them, tried before the whole slice: of 256 chips, groups of 16 send less than half as much as one group,
and need less memory (docs/plan.md)."""
MOST = 12
"""Compilations of a search. To find out how many chips must share a sample takes 10 of them at most, on 512 chips."""


def sharings(chips: int, slices: int, step: int) -> list[int]:
    """How many chips may share a sample, the fewest first: numbers that divide a slice, and leave parts among which the samples of a step divide."""
    inside = chips // slices
    return [n for n in range(1, inside + 1) if inside % n == 0 and step % (chips // n) == 0]


def dividing_meshes(chips: int, slices: int, sharing: int) -> list[MeshConfig]:
    """Meshes that divide weights, along which so many chips share a sample: in groups of ``GROUP`` chips, and in whole slices."""
    inside = chips // slices
    groups = dict.fromkeys(chips // size for size in (GROUP, inside) if inside % size == 0 and size % sharing == 0)
    return [MeshConfig("hybrid", context=sharing, slices=n) if n > 1 else MeshConfig("fsdp", context=sharing) for n in groups]


def other_meshes(chips: int, slices: int, sharing: int, model_config: UniPixelConfig) -> list[MeshConfig]:
    """Meshes that need more memory, and may be faster: every part with all weights, and products divided."""
    meshes = [MeshConfig("dp", context=sharing)]
    if sharing > 1 and slices == 1:
        divided = MeshConfig("fsdp_tp", tensor=sharing)
        try:
            check_heads(model_config, AbstractMesh(tuple(divided.sizes(chips).values()), AXES))
        except UserError:
            return meshes
        meshes.append(divided)
    return meshes


def fit(config: TrainConfig, model_config: UniPixelConfig, topology: Topology, workload: Workload, tell: Callable[[PlanReport], None]) -> TrainConfig:
    """The plan with the shortest step by roofline, of those tried, which are at most ``MOST``.

    The more chips share a sample, the less memory each needs and the more they send, so the fewest that fit are searched for, by bisection, with the plan of
    each mesh that needs least memory: everything computed again, one sample at once for each part of the mesh. There, as long as it fits, a plan goes on to
    less computed again and to more samples at once, since a smaller batch only repeats the collectives. Other meshes of as many sharers begin at the best.

    Args:
        config: its product of batch size and accumulation is kept.
        model_config: sizes of the model.
        topology: the chips.
        workload: what every sample holds.
        tell: is called with each plan that was tried.

    Raises:
        UserError: the samples of a step do not divide among the chips, or nothing that was tried fits; the message says what came closest.
    """
    chips, slices = len(topology.devices), topology.slices
    search = _Search(config, model_config, topology, workload, tell)
    possible = sharings(chips, slices, search.step)
    if not possible:
        raise UserError(f"{search.step} samples a step do not divide among {chips} chips: choose a multiple, or fewer chips")

    def fits(sharing: int) -> bool:
        return any(search.fits(mesh, chips // sharing) for mesh in dividing_meshes(chips, slices, sharing))

    fewest = 0 if fits(possible[0]) else bisect_left(possible, True, lo=1, key=fits)
    if fewest == len(possible):
        raise search.nothing()
    sharing = possible[fewest]
    meshes = dividing_meshes(chips, slices, sharing)
    first = next(mesh for mesh in meshes if search.fits(mesh, chips // sharing))
    search.climb(first, chips // sharing, "full")
    taken = {tuple(first.sizes(chips).values())}
    for mesh in [*meshes, *other_meshes(chips, slices, sharing, model_config)]:
        sizes = mesh.sizes(chips)
        best, report = search.best()
        memory = report.programs[0].memory
        weights = memory.parts["parameters"] * sizes[DATA] / report.mesh[DATA]  # which are repeated along that axis, and divided along all others
        if tuple(sizes.values()) not in taken and weights <= memory.capacity:
            search.climb(mesh, best.batch_size, best.remat)
        taken.add(tuple(sizes.values()))
    return search.best()[0]


@dataclass
class _Search:
    """What was tried, by mesh, batch size and remat policy."""

    config: TrainConfig
    model_config: UniPixelConfig
    topology: Topology
    workload: Workload
    tell: Callable[[PlanReport], None]
    tried: dict[tuple[MeshConfig, int, Remat], tuple[TrainConfig, PlanReport]] = field(default_factory=dict)

    @property
    def step(self) -> int:
        """Samples of a step."""
        return self.config.batch_size * self.config.accumulation

    def fits(self, mesh: MeshConfig, batch: int, remat: Remat = "full") -> bool:
        """Compile a plan, and say whether it fits. Not compiled is what needs more than another of its mesh that does not fit, and what is beyond ``MOST``."""
        for (known, least, policy), (_, report) in self.tried.items():
            if known == mesh and least <= batch and policy in ("full", remat) and not _fits(report):
                return False
        if (mesh, batch, remat) not in self.tried:
            if len(self.tried) == MOST:
                return False
            plan = replace(self.config, mesh=mesh, batch_size=batch, accumulation=self.step // batch, remat=remat)
            report = make_plan(plan, self.model_config, self.topology, self.workload, (GRADIENTS,))
            self.tried[mesh, batch, remat] = plan, report
            self.tell(report)
        return _fits(self.tried[mesh, batch, remat][1])

    def climb(self, mesh: MeshConfig, batch: int, remat: Remat) -> None:
        """Try a plan, and from it on, while that fits, less computed again and more samples at once; where both do not fit, more samples."""
        if not self.fits(mesh, batch, remat):
            return
        if remat == "full" and self.fits(mesh, batch, "dots"):
            remat = "dots"
        for more in range(2 * batch, self.step + 1, batch):
            if self.step % more == 0 and not self.fits(mesh, more, remat):
                if not self.fits(mesh, more, "full"):
                    return
                remat = "full"

    def best(self) -> tuple[TrainConfig, PlanReport]:
        """The fastest that fits."""
        return min((pair for pair in self.tried.values() if _fits(pair[1])), key=lambda pair: step_seconds(*pair))

    def nothing(self) -> UserError:
        """That nothing fits."""
        near, report = min(self.tried.values(), key=lambda pair: pair[1].programs[0].memory.total)
        memory = report.programs[0].memory
        return UserError(
            f"nothing that was tried fits {self.topology.name}, up to all chips of a slice for one sample: the nearest, mesh {report.mesh_text}, batch "
            f"{near.batch_size}, remat {near.remat}, needs {memory.total / 2**30:.2f} GiB of {memory.capacity / 2**30:.2f} a chip. Use more chips, fewer "
            "--tokens or fewer --frames"
        )


def _fits(report: PlanReport) -> bool:
    return report.programs[0].memory.fits


def step_seconds(config: TrainConfig, report: PlanReport) -> float:
    """Roofline's time of a step's gradients."""
    roofline = report.programs[0].roofline
    assert roofline is not None, "it fits, so it was compiled"
    return config.accumulation * roofline.seconds
