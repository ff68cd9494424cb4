"""``unipixel-jax bench step``: a training step with made-up weights on the devices that are here, which ``unipixel-jax plan`` foretells for others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unipixel_jax.bench.timing import timed
from unipixel_jax.config import UniPixelConfig
from unipixel_jax.core.mesh import OnMesh
from unipixel_jax.plan.programs import Workload, sample_row
from unipixel_jax.train.config import TrainConfig
from unipixel_jax.train.feed import to_devices
from unipixel_jax.train.flops import peak_flops, row_flops
from unipixel_jax.train.setup import Layout, TrainState, lay_out, shardings
from unipixel_jax.train.step import StepMetrics, make_gradients, make_update, step_key

STEPS = 1000
"""Steps of the learning rate's schedule, on which no time depends."""


@dataclass(frozen=True)
class StepTimes:
    """Seconds of each run of the two programs of a step.

    Attributes:
        gradients: of a batch's gradients.
        update: of the update.
        model_flops: the FLOPs that the model needs for the gradients of a batch, without recomputation and padding.
        devices: the number of devices.
    """

    gradients: list[float]
    update: list[float]
    model_flops: float
    devices: int

    @property
    def mfu(self) -> float | None:
        """The share of the devices' peak that the gradients reach in their shortest run; None where the peak is not known."""
        peak = peak_flops()
        return None if peak is None else self.model_flops / min(self.gradients) / (peak * self.devices)


def measure(config: TrainConfig, model_config: UniPixelConfig, workload: Workload, repeats: int) -> StepTimes:
    """Time the gradients of a batch, and the update.

    Args:
        config: the run, whose mesh, batch size and remat policy are measured.
        model_config: the model's sizes.
        workload: what every sample holds.
        repeats: timed runs of each program, after one that compiles.

    Raises:
        UserError: the devices do not form the mesh, or the batch does not divide among them.
    """
    layout = lay_out(config, model_config, STEPS, jax.devices())
    row = sample_row(model_config, workload, layout.mesh)
    rows: Any = jax.tree.map(lambda a: np.broadcast_to(a, (config.batch_size, *a.shape)), row)
    batch = to_devices(rows, layout.mesh)
    state, frozen = _made(layout)
    gradients, update = make_gradients(layout), make_update(layout)
    key = step_key(config.seed, 0, 0)

    def differentiate() -> Any:
        return gradients(state.trained, frozen, batch, key)

    found, losses = differentiate()

    def apply() -> StepMetrics:
        nonlocal state  # it is donated, so each update goes on from the one before
        state, metrics = update(state, found, losses.total)
        return metrics

    updates, times = timed(apply, repeats), timed(differentiate, repeats)
    flops = row_flops(layout.model_config, rows).training(config.trained).total
    return StepTimes(times, updates, flops, layout.mesh.size)


def _made(layout: Layout) -> tuple[TrainState, Any]:
    """Return a state and frozen weights of small numbers that look random, each shard made on its device.

    A random generator for each of hundreds of weights would take minutes to compile; equal numbers would let a GPU run at a higher clock than in training.
    """

    def fill(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        steps = [jax.lax.broadcasted_iota(jnp.float32, leaf.shape, axis) * (12.9898 + 65.2432 * axis) for axis in range(len(leaf.shape))]
        return (0.02 * jnp.sin(sum(steps, jnp.float32(1.0)))).astype(leaf.dtype)

    def make() -> tuple[TrainState, Any]:
        own, rest = jax.tree.map(fill, (layout.state.trained, layout.frozen))
        return TrainState(jnp.zeros((), jnp.int32), own, layout.optimizer.init(own)), rest

    where = shardings((layout.state, layout.frozen))
    return OnMesh(layout.mesh, jax.jit(make, out_shardings=where))()
