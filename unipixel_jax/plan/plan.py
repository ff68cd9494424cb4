"""Planning: the costs of each program of a run on a topology, as the topology's compiler reports them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from unipixel_jax.batch import TrainBatch
from unipixel_jax.config import UniPixelConfig
from unipixel_jax.core.mesh import data_shards
from unipixel_jax.errors import UserError
from unipixel_jax.models.partition import partitioned
from unipixel_jax.models.unipixel import abstract_model
from unipixel_jax.plan.hlo import read_costs
from unipixel_jax.plan.memory import Memory, bytes_per_chip, read_memory, refused_for_memory
from unipixel_jax.plan.programs import (
    DECODE,
    GRADIENTS,
    LANGUAGE,
    PREFILL,
    TRACK,
    UPDATE,
    Workload,
    inference_programs,
    rows_like,
    sample_row,
    train_programs,
)
from unipixel_jax.plan.report import PlanReport, ProgramReport
from unipixel_jax.plan.roofline import Roofline
from unipixel_jax.plan.topology import Topology
from unipixel_jax.train.config import TrainConfig
from unipixel_jax.train.flops import row_flops
from unipixel_jax.train.setup import Layout, lay_out

STEPS = 1000
"""Steps of the learning rate's schedule; the programs' costs do not depend on it."""
DEFAULT_PROGRAMS = (GRADIENTS, UPDATE, PREFILL, DECODE, TRACK)
"""The programs that are compiled unless others are named."""
PROGRAMS = (*DEFAULT_PROGRAMS, LANGUAGE)
NamedBytes = Mapping[str, Mapping[str, float]]
"""Bytes per chip, by program and by name of what takes them."""
PARALLEL_COMPILATIONS = 2
"""How many programs are compiled at a time: a compiler uses little more than one processor, and several gigabytes."""

LEAST_EFFORT = {"exec_time_optimization_effort": -1.0}
"""Options with which the TPU compiler is eight times faster. It then keeps nothing in VMEM from one operation to the next, so that the plan's memory traffic is
too high and its memory somewhat too low (docs/plan.md)."""


def make_plan(
    config: TrainConfig,
    model_config: UniPixelConfig,
    topology: Topology,
    workload: Workload,
    programs: Sequence[str] = DEFAULT_PROGRAMS,
    prompts: int | None = None,
    full_effort: bool = False,
) -> PlanReport:
    """Compile a run's programs for a topology, and count their costs.

    Args:
        config: the run's configuration, whose mesh, batch size and remat policy are planned.
        model_config: the model's sizes; its ``quantisation`` is that of inference, while training has full weights.
        topology: the chips to compile for.
        workload: what every sample holds.
        programs: names in ``PROGRAMS`` of the programs to compile.
        prompts: number of prompts that inference answers at a time; None for one on each part of the mesh.
        full_effort: compile for TPUs as a run does, instead of with ``LEAST_EFFORT``.

    Raises:
        UserError: the chips do not form the mesh, or a batch does not divide among them.
    """
    layout = lay_out(config, replace(model_config, quantisation=None), STEPS, topology.devices)
    row = sample_row(model_config, workload, layout.mesh)
    batch = rows_like(row, config.batch_size, layout.mesh)
    prompts = prompts or data_shards(layout.mesh)
    arguments, resident = _named_bytes(config, model_config, layout, batch)
    model_flops = _model_flops(config, model_config, row, workload, prompts)
    lowered = {**train_programs(layout, batch), **inference_programs(model_config, layout.mesh, prompts, row)}
    full_effort = full_effort or topology.chip.platform != "tpu"
    options = None if full_effort else LEAST_EFFORT
    with ThreadPoolExecutor(PARALLEL_COMPILATIONS) as pool:
        reports = [
            pool.submit(_compiled, name, lower(), options, arguments[name], resident.get(name, {}), topology, model_flops[name] / layout.mesh.size)
            for name, lower in lowered.items()
            if name in programs
        ]
        found = tuple(report.result() for report in reports)
    return PlanReport(config.name, topology.name, dict(layout.mesh.shape), config.batch_size, config.remat, full_effort, found)


def _named_bytes(config: TrainConfig, model_config: UniPixelConfig, layout: Layout, batch: TrainBatch) -> tuple[NamedBytes, NamedBytes]:
    """Return the bytes per chip of the named arguments of each program, and of what stays in memory beside it without being an argument."""
    trained, frozen, optimizer = (bytes_per_chip(tree) for tree in (layout.state.trained, layout.frozen, layout.state.opt_state))
    served = bytes_per_chip(partitioned(abstract_model(model_config), model_config, layout.mesh, jnp.dtype(model_config.dtype)))
    summed = float(trained) if config.accumulation > 1 else 0.0
    weights = {"parameters": float(trained + frozen)}
    arguments = {
        GRADIENTS: weights | {"batch": float(bytes_per_chip(batch))},
        LANGUAGE: weights,
        UPDATE: {"parameters": float(trained), "optimizer": float(optimizer), "gradients": float(trained)},
        **{name: {"parameters": float(served)} for name in (PREFILL, DECODE, TRACK)},
    }
    resident = {
        GRADIENTS: {"optimizer": float(optimizer), "summed gradients": summed},
        LANGUAGE: {"optimizer": float(optimizer), "summed gradients": summed},
        UPDATE: {"frozen parameters": float(frozen)},
    }
    return arguments, resident


def _model_flops(config: TrainConfig, model_config: UniPixelConfig, row: TrainBatch, workload: Workload, prompts: int) -> Mapping[str, float]:
    """Return the FLOPs that the model needs for each program on all chips together, without recomputation and padding."""
    flops, text = row_flops(model_config, row), model_config.text
    backward = flops.training(config.trained)
    unscored = 2.0 * text.hidden_size * text.vocab_size * (workload.tokens - 1)  # a prefill computes the logits of its last token only
    return {
        GRADIENTS: config.batch_size * backward.total,
        LANGUAGE: config.batch_size * backward.language,
        UPDATE: 0.0,
        PREFILL: prompts * (flops.language - unscored),
        DECODE: prompts * flops.token,
        TRACK: prompts * flops.frame,
    }


def _compiled(
    name: str,
    lowered: Any,
    options: Mapping[str, float] | None,
    arguments: Mapping[str, float],
    resident: Mapping[str, float],
    topology: Topology,
    model_flops: float,
) -> ProgramReport:
    """Compile a program and read its costs; its FLOPs and bytes are those of one chip."""
    begin = time.perf_counter()
    try:
        compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        memory = refused_for_memory(error)
        if memory is None:
            raise
        return ProgramReport(name, Memory({**memory.parts, **resident}, memory.capacity), None, None, time.perf_counter() - begin)
    seconds = time.perf_counter() - begin
    memory = read_memory(compiled, arguments, topology.chip)
    costs = read_costs(compiled.as_text(), topology.slice_of, unknown_trips=1)
    memory = replace(memory, parts={**memory.parts, **{part: size for part, size in resident.items() if size}})
    return ProgramReport(name, memory, costs, Roofline.of(costs, topology, model_flops), seconds)


def check_programs(names: Sequence[str]) -> None:
    """Check that all are names of programs.

    Raises:
        UserError: a name is unknown.
    """
    unknown = [name for name in names if name not in PROGRAMS]
    if unknown:
        raise UserError(f"program {unknown[0]!r} is unknown: expected some of {', '.join(PROGRAMS)}")
