"""A plan: what each program of a run costs on a topology, as its compiler sees it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

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
from unipixel_jax.train.setup import lay_out

STEPS = 1000
"""Of the schedule; the programs do not depend on it."""
USUAL = (GRADIENTS, UPDATE, PREFILL, DECODE, TRACK)
"""What is compiled unless others are named."""
PROGRAMS = (*USUAL, LANGUAGE)
TOGETHER = 2
"""Programs that are compiled at a time: a compiler uses little more than one processor, and several gigabytes."""

LITTLE_EFFORT = {"exec_time_optimization_effort": -1.0}
"""For the compiler of TPUs, which then keeps nothing in VMEM from one operation to the next: eight times faster, with too much memory traffic and somewhat too
little memory (docs/plan.md)."""


def make_plan(
    config: TrainConfig,
    model_config: UniPixelConfig,
    topology: Topology,
    workload: Workload,
    programs: Sequence[str] = USUAL,
    prompts: int | None = None,
    full_effort: bool = False,
) -> PlanReport:
    """Compile programs and count.

    Args:
        config: of the run; its mesh, batch and remat are what is planned.
        model_config: sizes of the model.
        topology: the chips.
        workload: what every sample holds.
        programs: of ``PROGRAMS``, which of them.
        prompts: that inference answers at a time; None for one on each part of the mesh.
        full_effort: compile for TPUs as a run does, instead of with ``LITTLE_EFFORT``.

    Raises:
        UserError: a mesh that the chips do not form, or a batch that does not divide among them.
    """
    layout = lay_out(config, model_config, STEPS, topology.devices)
    chips = layout.mesh.size
    row = sample_row(model_config, workload, layout.mesh)
    batch = rows_like(row, config.batch_size, layout.mesh)
    flops = row_flops(model_config, row)
    trained, frozen, optimizer = (bytes_per_chip(tree) for tree in (layout.state.trained, layout.frozen, layout.state.opt_state))
    served = bytes_per_chip(partitioned(abstract_model(model_config), model_config, layout.mesh, jnp.dtype(model_config.dtype)))
    rows, prompts = config.batch_size, prompts or data_shards(layout.mesh)
    backward = flops.training(config.trained)
    summed = float(trained) if config.accumulation > 1 else 0.0
    weights = {"parameters": float(trained + frozen)}
    # what lies in memory beside a program, without being its argument
    beside: Mapping[str, Mapping[str, float]] = {
        GRADIENTS: {"optimizer": float(optimizer), "summed gradients": summed},
        LANGUAGE: {"optimizer": float(optimizer), "summed gradients": summed},
        UPDATE: {"frozen parameters": float(frozen)},
    }
    arguments: Mapping[str, Mapping[str, float]] = MappingProxyType(
        {
            GRADIENTS: weights | {"batch": float(bytes_per_chip(batch))},
            LANGUAGE: weights,
            UPDATE: {"parameters": float(trained), "optimizer": float(optimizer), "gradients": float(trained)},
            **{name: {"parameters": float(served)} for name in (PREFILL, DECODE, TRACK)},
        }
    )
    text = model_config.text
    silent = 2.0 * text.hidden_size * text.vocab_size * (workload.tokens - 1)  # a prefill scores its last token only
    model_flops = {
        GRADIENTS: rows * backward.total,
        LANGUAGE: rows * backward.language,
        UPDATE: 0.0,
        PREFILL: prompts * (flops.language - silent),
        DECODE: prompts * flops.token,
        TRACK: prompts * flops.frame,
    }
    lowered = {**train_programs(layout, batch), **inference_programs(model_config, layout.mesh, prompts, row)}
    full_effort = full_effort or topology.chip.platform != "tpu"
    options = None if full_effort else LITTLE_EFFORT
    with ThreadPoolExecutor(TOGETHER) as pool:
        reports = [
            pool.submit(_compiled, name, lower(), options, arguments[name], beside.get(name, {}), topology, model_flops[name] / chips)
            for name, lower in lowered.items()
            if name in programs
        ]
        found = tuple(report.result() for report in reports)
    return PlanReport(config.name, topology.name, dict(layout.mesh.shape), rows, config.remat, full_effort, found)


def _compiled(
    name: str,
    lowered: Any,
    options: Mapping[str, float] | None,
    arguments: Mapping[str, float],
    beside: Mapping[str, float],
    topology: Topology,
    model_flops: float,
) -> ProgramReport:
    begin = time.perf_counter()
    try:
        compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        memory = refused_for_memory(error)
        if memory is None:
            raise
        return ProgramReport(name, Memory({**memory.parts, **beside}, memory.capacity), None, None, time.perf_counter() - begin)
    seconds = time.perf_counter() - begin
    memory = read_memory(compiled, arguments, topology.chip)
    costs = read_costs(compiled.as_text(), topology.slice_of, unknown_trips=1)
    memory = replace(memory, parts={**memory.parts, **{part: size for part, size in beside.items() if size}})
    return ProgramReport(name, memory, costs, Roofline.of(costs, topology, model_flops), seconds)


def check_programs(names: Sequence[str]) -> None:
    """Raise a UserError unless all are names of programs."""
    unknown = [name for name in names if name not in PROGRAMS]
    if unknown:
        raise UserError(f"program {unknown[0]!r} is unknown: expected some of {', '.join(PROGRAMS)}")
