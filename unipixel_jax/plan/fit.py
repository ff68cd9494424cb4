"""A search for the fastest plan that fits.

It finds how many chips must share a sample, which is the size of the mesh's context axis, and then the fastest mesh, batch size and remat policy for that
size. Each plan that is tried is compiled, one after the other and each in a process of its own, so that a search needs the memory of one plan.
"""

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
from unipixel_jax.plan.apart import plan_apart
from unipixel_jax.plan.programs import GRADIENTS, Workload
from unipixel_jax.plan.report import PlanReport
from unipixel_jax.plan.topology import Topology
from unipixel_jax.train.config import TrainConfig

GROUP = 16
"""The size of groups of chips over which weights are sharded, tried before sharding over a whole slice: of 256 chips, groups of 16 send less than half as much
as one group of all, and need less memory (docs/plan.md)."""
POLICIES: tuple[Remat, ...] = ("dots", "half", "full")
"""The remat policies of a search, in the order of the memory that they need, the most first."""
MAX_COMPILATIONS = 12
"""The most compilations of a search. Finding the context size takes at most 10 of them, on 512 chips."""


def context_sizes(chips: int, slices: int, step: int) -> list[int]:
    """Return how many chips may share a sample, in ascending order.

    Args:
        chips: number of chips.
        slices: number of slices that they form.
        step: samples of a step.

    Returns:
        Sizes of the context axis that divide a slice, and for which the samples of a step divide among the parts of the mesh.
    """
    inside = chips // slices
    return [n for n in range(1, inside + 1) if inside % n == 0 and step % (chips // n) == 0]


def sharded_meshes(chips: int, slices: int, context: int) -> list[MeshConfig]:
    """Return the meshes with this context size that shard weights over groups of ``GROUP`` chips and over whole slices."""
    inside = chips // slices
    groups = dict.fromkeys(chips // size for size in (GROUP, inside) if inside % size == 0 and size % context == 0)
    return [MeshConfig("hybrid", context=context, slices=n) if n > 1 else MeshConfig("fsdp", context=context) for n in groups]


def other_meshes(chips: int, slices: int, context: int, model_config: UniPixelConfig) -> list[MeshConfig]:
    """Return the meshes that need more memory and may be faster: data parallelism with this context size, and tensor parallelism in place of the context."""
    meshes = [MeshConfig("dp", context=context)]
    if context > 1 and slices == 1:
        tensor_parallel = MeshConfig("fsdp_tp", tensor=context)
        try:
            check_heads(model_config, AbstractMesh(tuple(tensor_parallel.sizes(chips).values()), AXES))
        except UserError:
            return meshes
        meshes.append(tensor_parallel)
    return meshes


def fit(config: TrainConfig, model_config: UniPixelConfig, topology: Topology, workload: Workload, tell: Callable[[PlanReport], None]) -> TrainConfig:
    """Search for the plan with the shortest step by roofline, with at most ``MAX_COMPILATIONS`` compilations.

    The more chips share a sample, the less memory each needs and the more they send. So the smallest context size that fits is found first, by bisection,
    with the plan that needs least memory on each mesh: full rematerialisation, and one sample at once for each part of the mesh. From that plan the search
    goes on, as long as plans fit, to less rematerialisation and to more samples at once, since a smaller batch only repeats the collectives. Other meshes
    with the same context size start from the batch size and remat policy of the best plan so far.

    Args:
        config: the configuration to start from; the product of batch size and accumulation is kept.
        model_config: the model's sizes.
        topology: the chips.
        workload: what every sample holds.
        tell: is called with the report of each plan that was tried.

    Returns:
        The configuration with the best plan's mesh, batch size, accumulation and remat policy.

    Raises:
        UserError: the samples of a step do not divide among the chips, or nothing that was tried fits; the message says what came closest.
    """
    chips, slices = len(topology.devices), topology.slices
    search = _Search(config, model_config, topology, workload, tell)
    possible = context_sizes(chips, slices, search.step)
    if not possible:
        raise UserError(f"{search.step} samples a step do not divide among {chips} chips: choose a multiple, or fewer chips")

    def fits(context: int) -> bool:
        return any(search.fits(mesh, chips // context) for mesh in sharded_meshes(chips, slices, context))

    fewest = 0 if fits(possible[0]) else bisect_left(possible, True, lo=1, key=fits)
    if fewest == len(possible):
        raise search.nothing_fits()
    context = possible[fewest]
    meshes = sharded_meshes(chips, slices, context)
    first = next(mesh for mesh in meshes if search.fits(mesh, chips // context))
    search.climb(first, chips // context, "full")
    taken = {tuple(first.sizes(chips).values())}
    for mesh in [*meshes, *other_meshes(chips, slices, context, model_config)]:
        sizes = mesh.sizes(chips)
        best, report = search.best()
        memory = report.programs[0].memory
        weights = memory.parts["parameters"] * sizes[DATA] / report.mesh[DATA]  # weights are replicated along data and sharded along all other axes
        if tuple(sizes.values()) not in taken and weights <= memory.capacity:
            search.climb(mesh, best.batch_size, best.remat)
        taken.add(tuple(sizes.values()))
    return search.best()[0]


@dataclass
class _Search:
    """The plans that were tried, by mesh, batch size and remat policy."""

    config: TrainConfig
    model_config: UniPixelConfig
    topology: Topology
    workload: Workload
    tell: Callable[[PlanReport], None]
    tried: dict[tuple[MeshConfig, int, Remat], tuple[TrainConfig, PlanReport]] = field(default_factory=dict)

    @property
    def step(self) -> int:
        """The number of samples of a step."""
        return self.config.batch_size * self.config.accumulation

    def fits(self, mesh: MeshConfig, batch: int, remat: Remat = "full") -> bool:
        """Compile a plan, and return whether it fits.

        It counts as not fitting, without being compiled, if a plan of the same mesh that needs no more memory does not fit, or if ``MAX_COMPILATIONS`` is
        reached.
        """
        for (known, least, policy), (_, report) in self.tried.items():
            if known == mesh and least <= batch and policy in POLICIES[POLICIES.index(remat) :] and not _fits(report):
                return False
        if (mesh, batch, remat) not in self.tried:
            if len(self.tried) == MAX_COMPILATIONS:
                return False
            plan = replace(self.config, mesh=mesh, batch_size=batch, accumulation=self.step // batch, remat=remat)
            report = plan_apart(plan, self.model_config, self.topology, self.workload, (GRADIENTS,))
            self.tried[mesh, batch, remat] = plan, report
            self.tell(report)
        return _fits(self.tried[mesh, batch, remat][1])

    def climb(self, mesh: MeshConfig, batch: int, remat: Remat) -> None:
        """Try a plan and, while plans fit, go on to less rematerialisation and more samples at once; where only one of them fits, more samples go first."""
        if not self.fits(mesh, batch, remat):
            return
        if remat == "full":
            remat = next(policy for policy in POLICIES if self.fits(mesh, batch, policy))
        for more in range(2 * batch, self.step + 1, batch):
            if self.step % more == 0:
                fitting = next((policy for policy in POLICIES[POLICIES.index(remat) :] if self.fits(mesh, more, policy)), None)
                if fitting is None:
                    return
                remat = fitting

    def best(self) -> tuple[TrainConfig, PlanReport]:
        """Return the fastest plan that fits, with its report."""
        return min((pair for pair in self.tried.values() if _fits(pair[1])), key=lambda pair: step_seconds(*pair))

    def nothing_fits(self) -> UserError:
        """Return the error that nothing fits, which names the plan that needs least."""
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
    """Return the roofline's time in seconds of all gradients of a step."""
    roofline = report.programs[0].roofline
    assert roofline is not None, "it fits, so it was compiled"
    return config.accumulation * roofline.seconds
