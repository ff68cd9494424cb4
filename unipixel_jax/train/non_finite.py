"""The check that stops a run at a step whose loss or gradients are not finite, and saves what is needed to compute that step again (reproduce.py)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from unipixel_jax.batch import TrainBatch
from unipixel_jax.data.loader import Loader
from unipixel_jax.errors import UserError
from unipixel_jax.train.checkpoints.manager import Checkpoints
from unipixel_jax.train.checkpoints.manifest import RunInfo
from unipixel_jax.train.saved_step import SavedStep, write_saved_step
from unipixel_jax.train.setup import Layout, TrainState
from unipixel_jax.train.step import StepMetrics


def not_finite(step: int) -> str:
    """Return the name of the folder and files that keep a step whose loss or gradients were not finite."""
    return f"not_finite_step_{step}"


@dataclass
class FiniteCheck:
    """The check of the latest step. It is separate from starting the step, because reading the step's metrics waits for the devices.

    Attributes:
        layout: the run's layout.
        run_info: the run's description in checkpoints.
        run_dir: the run's directory, in which a step that is not finite is kept.
        total: the number of steps of the run.
        start: the converted directory that training started from.
    """

    layout: Layout
    run_info: RunInfo
    run_dir: Path
    total: int
    start: Path
    _latest: tuple[int, list[TrainBatch], StepMetrics] | None = None

    def watch(self, step: int, batches: list[TrainBatch], metrics: StepMetrics) -> None:
        """Remember a step that was started, for `require` to check."""
        self._latest = step, batches, metrics

    def require(self, state: TrainState, loader: Loader[Any, TrainBatch]) -> None:
        """Check that the latest step was finite.

        Args:
            state: the state after that step. A step that is not finite changes no weights, so ``state`` then holds the weights that it began with.
            loader: the loader of the run's batches.

        Raises:
            UserError: the step was not finite; its batches and the weights are saved.
        """
        if self._latest is None or bool(self._latest[2].finite):
            return
        step, batches, _ = self._latest
        weights = self.run_dir / not_finite(step)
        part = f"_process_{jax.process_index()}" if jax.process_count() > 1 else ""
        path = weights.with_name(f"{weights.name}{part}.npz")
        write_saved_step(path, SavedStep(step, self.total, str(self.start), self.layout.config, self.layout.model_config, tuple(batches)))
        with Checkpoints(weights, self.run_info, keep=1) as checkpoints:
            checkpoints.save(step, state, loader.state())
        names = ", ".join(f"{source} {name}" for batch in batches for source, name in batch.samples[:8])
        raise UserError(
            f"step {step}: the loss or its gradients are not finite; samples: {names}. The batch is saved as {path}, the weights beside it (reproduce "
            f"with: unipixel-jax train reproduce {self.run_dir} {path}); lower the learning rate, or leave the sample out, and start again to go on from the "
            "last checkpoint"
        )
