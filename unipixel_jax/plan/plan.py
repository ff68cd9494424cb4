"""Planning: the costs of each program of a run on a topology, as the topology's compiler reports them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import jax

from unipixel_jax.config import UniPixelConfig
from unipixel_jax.core.accelerators import LEAST_EFFORT
from unipixel_jax.core.sharding import bytes_per_device
from unipixel_jax.errors import UserError
from unipixel_jax.models.unipixel import abstract_model
from unipixel_jax.plan.hlo import read_costs
from unipixel_jax.plan.kept import kept, key_of
from unipixel_jax.plan.memory import read_memory, refused_for_memory
from unipixel_jax.plan.movers import movers
from unipixel_jax.plan.programs import GRADIENTS, LANGUAGE, TRAINING, UPDATE, Workload, rows_like, sample_row, train_programs
from unipixel_jax.plan.report import PlanReport, ProgramReport, Serving
from unipixel_jax.plan.roofline import Roofline
from unipixel_jax.plan.scopes import module_scopes
from unipixel_jax.plan.serving import DECODE, PREFILL, SERVING, TRACK, Server
from unipixel_jax.plan.topology import Topology
from unipixel_jax.train.config import TrainConfig
from unipixel_jax.train.flops import row_flops
from unipixel_jax.train.setup import Layout, lay_out

STEPS = 1000
"""Steps of the learning rate's schedule; the programs' costs do not depend on it."""
DEFAULT_PROGRAMS = (GRADIENTS, UPDATE, PREFILL, DECODE, TRACK)
"""The programs that are compiled unless others are named."""
PROGRAMS = (*DEFAULT_PROGRAMS, LANGUAGE)
PARALLEL_COMPILATIONS = 2
"""How many programs are compiled at a time: a compiler uses little more than one processor, and several gigabytes."""


@dataclass(frozen=True)
class _Job:
    """A program to compile.

    Attributes:
        name: its name.
        lower: the function that lowers it.
        arguments: bytes per chip of the arguments that have names.
        resident: bytes per chip of what stays in memory beside it without being an argument.
        model_flops: FLOPs that the model needs of each chip, without recomputation and padding.
        serving: how it is served; None for a program of training.
        trips: how often to count a loop whose number of iterations depends on the data.
    """

    name: str
    lower: Callable[[], Any]
    arguments: Mapping[str, float]
    resident: Mapping[str, float]
    model_flops: float
    serving: Serving | None = None
    trips: int = 1


def make_plan(
    config: TrainConfig,
    model_config: UniPixelConfig,
    topology: Topology,
    workload: Workload,
    programs: Sequence[str] = DEFAULT_PROGRAMS,
    prompts: int = 1,
    full_effort: bool = False,
    tensor: int | None = None,
) -> PlanReport:
    """Compile a run's programs for a topology, and count their costs.

    Args:
        config: the run's configuration, whose mesh, batch size and remat policy are planned.
        model_config: the model's sizes; its ``quantisation`` is that of inference, while training has full weights.
        topology: the chips to compile for.
        workload: what every sample holds.
        programs: names in ``PROGRAMS`` of the programs to compile.
        prompts: number of answers that each copy of the weights generates together, for the programs of inference.
        full_effort: compile for TPUs as a run does, instead of with ``LEAST_EFFORT``.
        tensor: number of chips that share a copy of the weights for inference; None for the fewest that hold it.

    Raises:
        UserError: the chips do not form the mesh, a batch does not divide among them, or heads do not divide among ``tensor`` chips.
    """
    jobs: list[_Job] = []
    mesh, batch_size = None, prompts
    if any(name in TRAINING for name in programs):
        layout = lay_out(config, replace(model_config, quantisation=None), STEPS, topology.devices)
        jobs += _training(config, model_config, layout, workload)
        mesh, batch_size = layout.mesh, config.batch_size
    if any(name in SERVING for name in programs):
        server = Server.on(topology, model_config, workload, prompts, tensor)
        jobs += _serving(server, topology)
        mesh = mesh or server.mesh
    assert mesh is not None, "a program is named"
    full_effort = full_effort or topology.chip.platform != "tpu"
    options = None if full_effort else LEAST_EFFORT
    with ThreadPoolExecutor(PARALLEL_COMPILATIONS) as pool, module_scopes(abstract_model(model_config)):
        reports = [pool.submit(_reported, job, job.lower(), options, topology) for job in jobs if job.name in programs]
        found = tuple(report.result() for report in reports)
    return PlanReport(config.name, topology.name, dict(mesh.shape), batch_size, config.remat, full_effort, found)


def _training(config: TrainConfig, model_config: UniPixelConfig, layout: Layout, workload: Workload) -> list[_Job]:
    """Return the programs of training."""
    row = sample_row(model_config, workload, layout.mesh)
    batch = rows_like(row, config.batch_size, layout.mesh)
    trained, frozen, optimizer = (bytes_per_device(tree) for tree in (layout.state.trained, layout.frozen, layout.state.opt_state))
    weights = {"parameters": float(trained + frozen)}
    arguments = {
        GRADIENTS: weights | {"batch": float(bytes_per_device(batch))},
        LANGUAGE: weights,
        UPDATE: {"parameters": float(trained), "optimizer": float(optimizer), "gradients": float(trained)},
    }
    beside = {"optimizer": float(optimizer), "summed gradients": float(trained) if config.accumulation > 1 else 0.0}
    resident = {GRADIENTS: beside, LANGUAGE: beside, UPDATE: {"frozen parameters": float(frozen)}}
    backward = row_flops(model_config, row).training(config.trained)
    flops = {GRADIENTS: config.batch_size * backward.total, LANGUAGE: config.batch_size * backward.language, UPDATE: 0.0}
    return [_Job(name, lower, arguments[name], resident[name], flops[name] / layout.mesh.size) for name, lower in train_programs(layout, batch).items()]


def _serving(server: Server, topology: Topology) -> list[_Job]:
    """Return the programs of inference."""
    flops, text = row_flops(server.config, sample_row(server.config, server.workload, server.mesh)), server.config.text
    unscored = 2.0 * text.hidden_size * text.vocab_size * (server.workload.tokens - 1)  # a prefill computes the logits of its last token only
    needed = {PREFILL: server.read_together * (flops.language - unscored), DECODE: server.prompts * flops.token, TRACK: flops.frame}
    answers = {PREFILL: server.read_together, DECODE: server.prompts, TRACK: 1}
    placed, reading = server.placement, server.weights_of_a_token / topology.chip.bandwidth
    return [
        _Job(
            name,
            lower,
            server.arguments(name),
            {},
            needed[name] / server.mesh.size,
            Serving(placed.tensor, placed.copies, answers[name], reading if name == DECODE else 0.0),
            server.filled_blocks if name == DECODE else 1,
        )
        for name, lower in server.programs().items()
    ]


def _reported(job: _Job, lowered: Any, options: Mapping[str, float] | None, topology: Topology) -> ProgramReport:
    """Return the report of a program, which is compiled unless the same was before."""
    told = job.name, job.arguments, job.resident, job.model_flops, job.serving, job.trips
    return kept(key_of(lowered, told, options, topology.name, topology.chip), lambda: _compiled(job, lowered, options, topology))


def _compiled(job: _Job, lowered: Any, options: Mapping[str, float] | None, topology: Topology) -> ProgramReport:
    """Compile a program and read its costs; its FLOPs and bytes are those of one chip."""
    begin = time.perf_counter()
    try:
        compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        memory = refused_for_memory(error)
        if memory is None:
            raise
        memory = replace(memory, parts={**memory.parts, **job.resident})
        return ProgramReport(job.name, memory, None, None, time.perf_counter() - begin, job.serving)
    seconds = time.perf_counter() - begin
    memory = read_memory(compiled, job.arguments, topology.chip)
    costs = read_costs(compiled.as_text(), topology.slice_of, unknown_trips=job.trips)
    memory = replace(memory, parts={**memory.parts, **{part: size for part, size in job.resident.items() if size}})
    return ProgramReport(job.name, memory, costs, Roofline.of(costs, topology, job.model_flops), seconds, job.serving, movers(costs))


def check_programs(names: Sequence[str]) -> None:
    """Check that all are names of programs.

    Raises:
        UserError: a name is unknown.
    """
    unknown = [name for name in names if name not in PROGRAMS]
    if unknown:
        raise UserError(f"program {unknown[0]!r} is unknown: expected some of {', '.join(PROGRAMS)}")
