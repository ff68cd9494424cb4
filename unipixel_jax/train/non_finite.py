"""What stops a run at a step whose loss or gradients are not finite, and keeps what is needed to compute that step again (reproduce.py)."""

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
from unipixel_jax.train.kept import Kept, write_kept
from unipixel_jax.train.setup import Layout, TrainState
from unipixel_jax.train.step import StepMetrics


def not_finite(step: int) -> str:
    """The name of what is kept of a step whose loss or gradients were not finite."""
    return f"not_finite_step_{step}"


@dataclass
class FiniteCheck:
    """Looks at the numbers of the latest step when it is asked to, since looking waits for the devices.

    Attributes:
        layout: of the run.
        run_info: of the run.
        run_dir: where a step that is not finite is kept.
        total: steps of the run.
        start: the converted directory that training started from.
    """

    layout: Layout
    run_info: RunInfo
    run_dir: Path
    total: int
    start: Path
    _latest: tuple[int, list[TrainBatch], StepMetrics] | None = None

    def watch(self, step: int, batches: list[TrainBatch], numbers: StepMetrics) -> None:
        """Take note of a step that was started: `require` looks at it."""
        self._latest = step, batches, numbers

    def require(self, state: TrainState, loader: Loader[Any, TrainBatch]) -> None:
        """Do nothing if the latest step was finite.

        Args:
            state: after that step. Its update was left out if it was not finite, so ``state`` has the weights that the step met.
            loader: of the run's batches.

        Raises:
            UserError: it was not; its batches and the weights are saved.
        """
        if self._latest is None or bool(self._latest[2].finite):
            return
        step, batches, _ = self._latest
        weights = self.run_dir / not_finite(step)
        part = f"_process_{jax.process_index()}" if jax.process_count() > 1 else ""
        path = weights.with_name(f"{weights.name}{part}.npz")
        write_kept(path, Kept(step, self.total, str(self.start), self.layout.config, self.layout.model_config, tuple(batches)))
        with Checkpoints(weights, self.run_info, keep=1) as checkpoints:
            checkpoints.save(step, state, loader.state())
        names = ", ".join(f"{source} {name}" for batch in batches for source, name in batch.samples[:8])
        raise UserError(
            f"step {step}: the loss or its gradients are not finite; samples: {names}. The batch is saved as {path}, the weights beside it (reproduce "
            f"with: unipixel-jax train reproduce {self.run_dir} {path}); lower the learning rate, or leave the sample out, and start again to go on from the "
            "last checkpoint"
        )
