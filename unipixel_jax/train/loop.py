"""The training loop, which reads batches and writes checkpoints and metrics."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from unipixel_jax.batch import TrainBatch
from unipixel_jax.config import UniPixelConfig
from unipixel_jax.core import distributed
from unipixel_jax.core.files import replacing
from unipixel_jax.core.mesh import OnMesh
from unipixel_jax.data.loader import Loader
from unipixel_jax.data.report import report
from unipixel_jax.processing.tokenizer import Tokenizer
from unipixel_jax.train.checkpoints.manager import CHECKPOINTS, Best, Checkpoints
from unipixel_jax.train.checkpoints.manifest import RunInfo
from unipixel_jax.train.config import TrainConfig
from unipixel_jax.train.feed import to_devices
from unipixel_jax.train.flops import row_flops
from unipixel_jax.train.interruption import Interruption
from unipixel_jax.train.loaders import batch_share, resume, run_loader, run_templates, training_mixture, validation_mixture
from unipixel_jax.train.meter import Meter
from unipixel_jax.train.metrics import Unwatched, Watch
from unipixel_jax.train.non_finite import FiniteCheck
from unipixel_jax.train.objective import LossParts
from unipixel_jax.train.setup import Setup, TrainState, lay_out, set_up
from unipixel_jax.train.step import add, make_gradients, make_update, scale, step_key
from unipixel_jax.train.validation import Validation

CONFIG = "config.json"
"""Where a run's directory keeps its configuration."""
BEST = Best("validation_loss", larger=False)
"""The metric whose best checkpoint is kept besides the newest ones."""
SLOWEST_SHOWN = 0.05
"""The share of the time that a process may wait for another before a line names the one that it waits for."""


def train(config: TrainConfig, run_dir: Path, start: Path, devices: Sequence[jax.Device] | None = None) -> TrainState:
    """Train, continuing from the newest checkpoint in the run directory if there is one. Of several processes (core/distributed.py), all call it.

    On SIGTERM or Ctrl-C in one of the processes, all finish the same step, save it and return.

    Args:
        config: the run's configuration.
        run_dir: the directory for checkpoints, metrics and the configuration, which all processes see.
        start: the converted directory that training starts from.
        devices: the devices to train on; None for the devices of all processes.

    Returns:
        The state after the last step, which is also saved.

    Raises:
        UserError: data, weights or checkpoints cannot be read or do not fit, the disk cannot be written, or a loss or gradient is not finite; in the last
            case the batch and the weights are saved.
    """
    tokenizer = Tokenizer.from_directory(start)
    model_config = UniPixelConfig.from_directory(start)
    tokenizer.check(model_config)
    templates = run_templates(config)
    mixture, held_out = training_mixture(config), validation_mixture(config)
    total = total_steps(config, mixture.steps_per_epoch)
    layout = lay_out(config, model_config, total, devices or jax.devices())
    run_info = RunInfo.of(config.to_json(), layout.model_config, config.trained, config.lora, start)
    run_dir.mkdir(parents=True, exist_ok=True)
    with (
        Checkpoints(run_dir / CHECKPOINTS, run_info, config.keep, BEST if held_out else None) as checkpoints,
        run_loader(config, layout, mixture, tokenizer, templates) as loader,
    ):
        restored = checkpoints.restore(layout.state)
        if restored is not None:
            resume(loader, restored.data, run_dir)
        setup = set_up(layout, start, None if restored is None else restored.state)
        first, writes = int(setup.state.step), jax.process_index() == 0
        if writes:
            with replacing(run_dir / CONFIG) as aside:
                aside.write_text(json.dumps(config.to_json(), indent=1) + "\n", encoding="utf-8")
        finite = FiniteCheck(layout, run_info, run_dir, total, start)
        validation = Validation(setup, held_out, tokenizer, templates) if held_out else None
        with Watch(run_dir, config.to_json(), total, first) if writes else Unwatched() as watch, Interruption() as interruption:
            watch.say(report(mixture))
            own, everything = setup.count()
            watch.say(f"{config.name}: {own:,} of {everything:,} parameters are trained, {total} steps{f', from step {first} on' if first else ''}")
            return _Run(setup, run_dir, total, loader, checkpoints, finite, validation, watch, interruption).steps(first)


def total_steps(config: TrainConfig, batches: int) -> int:
    """Return the number of steps of a training, rounded as in transformers' ``Trainer`` (4.53.3, ``set_initial_training_values``).

    Args:
        config: the run's configuration.
        batches: the number of batches of an epoch, of which the last step takes what is left.
    """
    return config.steps or max(1, math.ceil(config.epochs * math.ceil(batches / config.accumulation)))


@dataclass
class _Run:
    """A run that is ready to begin, with the objects that its steps use.

    Attributes:
        setup: the weights and their shardings.
        run_dir: the run's directory.
        total: the number of steps of the whole training.
        loader: loads this process's rows of every batch.
        checkpoints: the checkpoints of the run.
        finite: stops the run after a step that was not finite.
        validation: measures the validation losses; None where there is no validation data.
        watch: shows and writes metrics.
        interruption: records signals to end.
        meter: the metrics since the last line of the log.
    """

    setup: Setup
    run_dir: Path
    total: int
    loader: Loader[Any, TrainBatch]
    checkpoints: Checkpoints
    finite: FiniteCheck
    validation: Validation | None
    watch: Unwatched
    interruption: Interruption
    meter: Meter = field(default_factory=Meter)

    def __post_init__(self) -> None:
        self._gradients_of: OnMesh = make_gradients(self.setup)
        self._updated: OnMesh = make_update(self.setup)
        self._readers = jax.process_count() // batch_share(self.setup)[1]

    def steps(self, first: int) -> TrainState:
        """Run all steps from ``first`` on, or those until a signal, and save a last checkpoint."""
        config, state = self.setup.config, self.setup.state
        for step in range(first, self.total):
            distributed.reach(f"step {step}")
            with self.meter.counting("ahead"):
                interrupted = distributed.any_process("interruption", self.interruption.signal is not None)
            if interrupted:
                self._save(step, state)
                self._finish(f"stopped by a signal; step {step} of {self.total} is saved. Start the same command again to go on")
                return state
            state = self._step(step, state)
            done = step + 1
            if self._due(done, config.log_every):
                self._log(done)
            measured = {}
            if self.validation and self._due(done, config.evaluate_every):
                measured = self._validate(self.validation, done, state)
            if self._due(done, config.save_every):
                self._save(done, state, measured)
        self._finish(f"trained. Export it with: unipixel-jax train export {self.run_dir} OUT")
        return state

    def _step(self, step: int, state: TrainState) -> TrainState:
        """Compute the gradients of a step and apply them; the state is donated."""
        gradients, losses, batches = self._gradients(step, state)
        # This waits for the step before, while the devices compute the gradients of this one.
        self.finite.require(state, self.loader)
        state, metrics = self._updated(state, gradients, sum((one.total for one in losses[1:]), losses[0].total))
        self.finite.watch(step, batches, metrics)
        self.meter.updates.append(metrics)
        self.watch.advance(step + 1)
        return state

    def _gradients(self, step: int, state: TrainState) -> tuple[nnx.State, list[LossParts], list[TrainBatch]]:
        """Compute the mean gradients over the batches of a step; returns them with the losses and arrays of each batch.

        The last step of an epoch has the batches that are left of it. Each counts as much as in other steps, as in the reference, whose trainer divides every
        loss by the accumulation (transformers' ``Trainer.training_step``).
        """
        config, setup = self.setup.config, self.setup
        total: Any = None
        losses: list[LossParts] = []
        batches: list[TrainBatch] = []
        left = self.loader.mixture.steps_per_epoch - self.loader.step % self.loader.mixture.steps_per_epoch
        for number in range(min(config.accumulation, left)):
            arrays = self._next_batch()
            key = step_key(config.seed, step, number)
            gradients, parts = self._gradients_of(state.trained, setup.frozen, to_devices(arrays, setup.mesh), key)
            total = gradients if total is None else add(total, gradients)
            del gradients  # else they would stay in memory beside the sum while those of the next batch are computed
            losses.append(parts)
            batches.append(arrays)
            self.meter.count(arrays, parts, row_flops(setup.model_config, arrays).training(config.trained).total)
        mean = total if config.accumulation == 1 else scale(total, jnp.float32(1 / config.accumulation))
        return mean, losses, batches

    def _next_batch(self) -> TrainBatch:
        with self.meter.counting("wait"):
            return next(self.loader).arrays

    def _due(self, done: int, every: int) -> bool:
        """Return whether something that happens after every ``every`` steps, and after the last one, happens after ``done`` steps."""
        return done % every == 0 or done == self.total

    def _log(self, done: int) -> None:
        """Write the metrics of the steps since the last line of the log."""
        learning_rate, replaced = float(self.setup.rate(done - 1)), self.loader.failures.counts.total()
        with self.meter.counting("ahead"):
            distributed.barrier("the log")
        values = self.meter.values(learning_rate, self._readers, replaced)
        self.watch.write(done, values)
        if values.get("process_wait", 0.0) > SLOWEST_SHOWN:
            slowest = distributed.process_name(int(values["slowest_process"]))
            self.watch.say(f"{slowest} is the slowest: another process waited for it for {values['process_wait']:.0%} of the time")
        self.meter = Meter()

    def _validate(self, validation: Validation, done: int, state: TrainState) -> dict[str, float]:
        """Measure and write the validation losses. The meter begins anew, so that this time does not count as training."""
        distributed.reach(f"the validation after step {done}")
        measured = validation.measure(state)
        self.watch.write(done, measured)
        self.meter = Meter()
        return measured

    def _save(self, done: int, state: TrainState, measured: Mapping[str, float] = {}) -> None:
        """Start to save a state, once its last step is known to have been finite."""
        self.finite.require(state, self.loader)
        distributed.reach(f"the save of step {done}")
        with self.meter.counting("saving"):
            self.checkpoints.save(done, state, self.loader.state(), measured or None)

    def _finish(self, ended: str) -> None:
        """Wait for the last save, and print how the run ended."""
        distributed.reach("the last save")
        self.checkpoints.wait()
        if self.loader.failures.counts:
            self.watch.say("replaced samples: " + ", ".join(f"{name} {count}" for name, count in self.loader.failures.counts.most_common()))
        self.watch.say(f"{self.run_dir}: {ended}")
