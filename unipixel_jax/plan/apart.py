"""Work in a process of its own, which gives all its memory back when it ends: a compiler keeps gigabytes of each program that it compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, TypeVar

from unipixel_jax.config import UniPixelConfig
from unipixel_jax.errors import UserError
from unipixel_jax.plan.plan import make_plan
from unipixel_jax.plan.programs import Workload
from unipixel_jax.plan.report import PlanReport
from unipixel_jax.plan.topology import Topology, open_topology
from unipixel_jax.train.config import TrainConfig

R = TypeVar("R")


def plan_apart(config: TrainConfig, model_config: UniPixelConfig, topology: Topology, workload: Workload, programs: Sequence[str]) -> PlanReport:
    """Compile programs as ``make_plan`` does, in a process of its own."""
    return apart(_plan, config, model_config, topology.name, workload, tuple(programs))


def _plan(config: TrainConfig, model_config: UniPixelConfig, topology: str, workload: Workload, programs: Sequence[str]) -> PlanReport:
    # devices belong to the process that made them
    return make_plan(config, model_config, open_topology(topology), workload, programs)


def apart(function: Callable[..., R], *arguments: Any) -> R:
    """Call a function in a new process, and return its result or raise its exception. Function, arguments and result are pickled.

    Raises:
        UserError: the process was killed, as Linux does where memory runs out.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            raise UserError("the process that compiles a plan was killed, probably since this machine's memory ran out: plan on one with more memory") from None
