"""The training loop: batches in, checkpoints and numbers out."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from unipixel_jax.config import UniPixelConfig
from unipixel_jax.core import distributed
from unipixel_jax.core.buckets import Ladder
from unipixel_jax.core.files import replacing
from unipixel_jax.core.mesh import OnMesh, data_shards
from unipixel_jax.core.sharding import batch_spec
from unipixel_jax.data.batch import BatchArrays
from unipixel_jax.data.loader import Loader
from unipixel_jax.data.mixture import Mixture
from unipixel_jax.data.pipeline import DrawSample, open_loader, open_mixture
from unipixel_jax.data.report import report
from unipixel_jax.errors import UserError
from unipixel_jax.losses.mask import MaskLosses
from unipixel_jax.processing.tokenizer import Tokenizer
from unipixel_jax.train.checkpoints.manager import CHECKPOINTS, Best, Checkpoints
from unipixel_jax.train.checkpoints.manifest import RunInfo
from unipixel_jax.train.config import TrainConfig
from unipixel_jax.train.feed import count_tokens, row_sizes, to_batch
from unipixel_jax.train.flops import peak_flops, row_flops
from unipixel_jax.train.interruption import Interruption
from unipixel_jax.train.kept import Kept, write_kept
from unipixel_jax.train.metrics import Unwatched, Watch
from unipixel_jax.train.objective import LossParts
from unipixel_jax.train.setup import Layout, Setup, TrainState, lay_out, set_up
from unipixel_jax.train.step import StepNumbers, add, make_gradients, make_loss, make_update, scale, step_key

log = logging.getLogger(__name__)

CONFIG = "config.json"
VALIDATION_SEED = 1 << 20
"""Added to the run's seed for validation data, so that sources which draw as they go draw something else."""
BEST = Best("validation_loss", larger=False)


@dataclass
class Meter:
    """Numbers of the steps since the last line of the log; device arrays are fetched when the line is written. Counts are of this process's part."""

    losses: list[LossParts] = field(default_factory=list)
    numbers: list[StepNumbers] = field(default_factory=list)
    samples: int = 0
    tokens: int = 0
    flops: float = 0.0
    wait: float = 0.0
    since: float = field(default_factory=time.perf_counter)

    def values(self, learning_rate: float, readers: int, replaced: int) -> dict[str, float]:
        """Means over the steps, and rates of all processes together, of which ``readers`` read each sample; and how many samples were replaced since the
        start, of which this process counted ``replaced``. To be called by all of them.
        """
        counts = [json.loads(own) for own in distributed.gather("counts", json.dumps([self.samples, self.tokens, self.flops, replaced]))]
        samples, tokens, flops, replaced_by_all = (sum(every) / readers for every in zip(*counts, strict=True))
        steps = jax.tree.map(lambda *a: float(np.mean(np.stack(jax.device_get(a)))), *self.numbers)
        seconds = time.perf_counter() - self.since
        peak = peak_flops()
        return {
            **_means(self.losses),
            "grad_norm": steps.grad_norm,
            **{f"grad_norm_{name}": value for name, value in steps.group_norms.items()},
            "learning_rate": learning_rate,
            "samples_per_second": samples / seconds,
            "tokens_per_second": tokens / seconds,
            "host_wait": self.wait / seconds,
            "model_flops_per_second": flops / seconds,
            **({} if peak is None else {"mfu": flops / seconds / (peak * jax.process_count())}),
            **({"replaced": replaced_by_all} if replaced_by_all else {}),
        }


def _means(losses: Sequence[LossParts]) -> dict[str, float]:
    """Means over batches: of the mask losses over those that segment, of ``<|seg|>`` over all there were; what there was none of is left out."""
    losses = jax.device_get(losses)
    mean = jax.tree.map(lambda *a: float(np.mean(a)), *losses)
    segmenting, segs = [one for one in losses if one.clips], sum(float(one.segs) for one in losses)
    found = {"loss": mean.total, "language": mean.language}
    if segmenting:
        masks = jax.tree.map(lambda *a: float(np.mean(a)), *segmenting)
        found |= {"segmentation": masks.segmentation, **{field.name: getattr(masks.masks, field.name) for field in fields(MaskLosses)}}
    return found | ({"seg_rate": sum(float(one.seg_said) for one in losses) / segs} if segs else {})


def train(config: TrainConfig, run_dir: Path, start: Path, devices: Sequence[jax.Device] | None = None) -> TrainState:
    """Train, or go on training where the run directory's newest checkpoint is. Of several processes (core/distributed.py), all call it.

    On SIGTERM or Ctrl-C in one of them, all finish the same step, save it and return.

    Args:
        config: of the run.
        run_dir: for checkpoints, numbers and the configuration; a folder that all processes see.
        start: the converted directory that training starts from.
        devices: to train on; None for all of all processes.

    Returns:
        The state after the last step, which is saved.

    Raises:
        UserError: what the data, the weights or the disk refuse, each in one line; or a loss that is not a number, with the batch saved.
    """
    tokenizer = Tokenizer.from_directory(start)
    model_config = UniPixelConfig.from_directory(start)
    tokenizer.check(model_config)
    mixture, held_out = _mixture(config, config.data.datasets, config.seed, "train"), None
    if config.data.validation:
        held_out = _mixture(config, config.data.validation, config.seed + VALIDATION_SEED, config.data.validation_split)
    total = config.steps or max(1, int(config.epochs * mixture.steps_per_epoch / config.accumulation))
    layout = lay_out(config, model_config, total, devices or jax.devices())
    run_info = RunInfo.of(config.to_json(), layout.model_config, config.trained, config.lora, start)
    run_dir.mkdir(parents=True, exist_ok=True)
    with (
        Checkpoints(run_dir / CHECKPOINTS, run_info, config.keep, BEST if config.data.validation else None) as checkpoints,
        _loader(config, layout, mixture, tokenizer) as loader,
    ):
        restored = checkpoints.restore(layout.state)
        if restored is not None:
            _go_on(loader, restored.data, run_dir)
        setup = set_up(layout, start, None if restored is None else restored.state)
        first, writes = int(setup.state.step), jax.process_index() == 0
        if writes:
            with replacing(run_dir / CONFIG) as aside:
                aside.write_text(json.dumps(config.to_json(), indent=1) + "\n", encoding="utf-8")
        with Watch(run_dir, config.to_json(), total, first) if writes else Unwatched() as watch, Interruption() as interruption:
            watch.say(report(mixture))
            own, everything = setup.count()
            watch.say(f"{config.name}: {own:,} of {everything:,} numbers are trained, {total} steps{f', from step {first} on' if first else ''}")
            return _Run(setup, tokenizer, run_info, checkpoints, loader, watch, interruption, run_dir, total, start, model_config, held_out).steps(first)


def _go_on(loader: Loader[Any, BatchArrays], data: Any, run_dir: Path) -> None:
    """Take the data up where a checkpoint says.

    Raises:
        UserError: what it says is no state of a loader.
    """
    try:
        loader.restore(data)
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"{run_dir}: its checkpoint does not say where the data stood ({error!r}): copy it again, or start a new run") from None


def not_finite(step: int) -> str:
    """The name of what is kept of a step whose loss or gradients were not finite."""
    return f"not_finite_step_{step}"


@dataclass(frozen=True)
class _Done:
    """A step that was started, and what may not have been looked at."""

    step: int
    batches: list[BatchArrays]
    numbers: StepNumbers


@dataclass
class _Run:
    """What the steps of a run share."""

    setup: Setup
    tokenizer: Tokenizer
    run_info: RunInfo
    checkpoints: Checkpoints
    loader: Loader[Any, BatchArrays]
    watch: Unwatched
    interruption: Interruption
    run_dir: Path
    total: int
    start: Path
    model_config: UniPixelConfig
    held_out: Mixture | None

    def steps(self, first: int) -> TrainState:
        """All steps from ``first`` on, or those until a signal, and a last checkpoint."""
        config, setup, state = self.setup.config, self.setup, self.setup.state
        readers = jax.process_count() // _share(setup)[1]
        ended = f"{self.run_dir}: trained. Export it with: unipixel-jax train export {self.run_dir} OUT"
        gradients, update = make_gradients(setup), make_update(setup)
        meter = Meter()
        last: _Done | None = None
        for step in range(first, self.total):
            distributed.reach(f"step {step}")
            if distributed.any_process("interruption", self.interruption.signal is not None):
                self._save(step, state, last)
                ended = f"{self.run_dir}: stopped by a signal; step {step} of {self.total} is saved. Start the same command again to go on"
                break
            grads: Any = None
            batches: list[BatchArrays] = []
            parts: list[LossParts] = []
            for number in range(config.accumulation):
                begin = time.perf_counter()
                arrays = next(self.loader).arrays
                meter.wait += time.perf_counter() - begin
                key = step_key(config.seed, step, number)
                grad, part = gradients(state.trained, setup.frozen, to_batch(arrays, setup.mesh), key)
                grads = grad if grads is None else add(grads, grad)
                del grad  # would be kept beside the sum while the next batch's are computed
                batches.append(arrays)
                parts.append(part)
                meter.samples += len(arrays.samples)
                meter.tokens += count_tokens(arrays)
                meter.flops += row_flops(setup.model_config, arrays).training(config.trained).total
            if config.accumulation > 1:
                grads = scale(grads, jnp.float32(1 / config.accumulation))
            # looking at a step's numbers waits for it, while the next one's gradients are computed
            self._require_finite(last, state)
            state, numbers = update(state, grads, sum((p.total for p in parts[1:]), parts[0].total))
            del grads
            meter.losses += parts
            meter.numbers.append(numbers)
            last = _Done(step, batches, numbers)
            self.watch.advance(step + 1)
            if (step + 1) % config.log_every == 0 or step + 1 == self.total:
                self.watch.write(step + 1, meter.values(float(setup.rate(step)), readers, self.loader.failures.counts.total()))
                meter = Meter()
            measured = {}
            if config.data.validation and ((step + 1) % config.evaluate_every == 0 or step + 1 == self.total):
                distributed.reach(f"the validation after step {step}")
                measured = self._validate(state)
                self.watch.write(step + 1, measured)
                meter = Meter()
            if (step + 1) % config.save_every == 0 or step + 1 == self.total:
                self._save(step + 1, state, last, measured)
        distributed.reach("the last save")
        self.checkpoints.wait()
        if self.loader.failures.counts:
            self.watch.say("replaced samples: " + ", ".join(f"{name} {count}" for name, count in self.loader.failures.counts.most_common()))
        self.watch.say(ended)
        return state

    def _save(self, step: int, state: TrainState, last: _Done | None, measured: Mapping[str, float] = {}) -> None:
        """Start to save a state, of which no step was left out."""
        self._require_finite(last, state)
        distributed.reach(f"the save of step {step}")
        self.checkpoints.save(step, state, self.loader.state(), measured or None)

    def _require_finite(self, last: _Done | None, state: TrainState) -> None:
        """Stop where a step's loss or gradients were not finite; its update was left out, so that ``state`` has the weights that it met."""
        if last is None or bool(last.numbers.finite):
            return
        weights = self.run_dir / not_finite(last.step)
        part = f"_process_{jax.process_index()}" if jax.process_count() > 1 else ""
        path = weights.with_name(f"{weights.name}{part}.npz")
        write_kept(path, Kept(last.step, self.total, str(self.start), self.setup.config, self.model_config, tuple(last.batches)))
        with Checkpoints(weights, self.run_info, keep=1) as checkpoints:
            checkpoints.save(last.step, state, self.loader.state())
        names = ", ".join(f"{source} {name}" for batch in last.batches for source, name in batch.samples[:8])
        raise UserError(
            f"step {last.step}: the loss or its gradients are not finite; samples: {names}. The batch is saved as {path}, the weights beside it (reproduce "
            f"with: unipixel-jax train reproduce {self.run_dir} {path}); lower the learning rate, or leave the sample out, and start again to go on from the "
            "last checkpoint"
        )

    @cached_property
    def _loss(self) -> OnMesh:
        return make_loss(self.setup)

    def _validate(self, state: TrainState) -> dict[str, float]:
        """Mean losses over the validation batches, the same in every evaluation."""
        setup, config = self.setup, self.setup.config
        assert self.held_out is not None, "asked for only where there is validation data"
        with _loader(config, setup, self.held_out, self.tokenizer) as loader:
            found = [self._loss(state.trained, setup.frozen, to_batch(batch.arrays, setup.mesh)) for batch in _take(loader, config.data.validation_batches)]
        return {f"validation_{name}": value for name, value in _means(found).items()}


def _take(loader: Loader[Any, BatchArrays], count: int) -> Iterator[Any]:
    for _ in range(count):
        yield next(loader)


def _mixture(config: TrainConfig, datasets: str, seed: int, split: str) -> Mixture:
    return open_mixture(datasets, config.data.root, config.batch_size, seed, split, config.data.filters)


def _loader(config: TrainConfig, setup: Layout, mixture: Mixture, tokenizer: Tokenizer) -> Loader[Any, BatchArrays]:
    options = replace(config.data.draw, image_size=setup.model_config.sam2.image_size)
    draw = DrawSample(tokenizer, setup.model_config, options, config.data.max_tokens, config.dtype)
    host, hosts = _share(setup)
    # every number of rows that this host's chips can share, and none that fills up a batch of whole samples
    shards = data_shards(setup.mesh) // hosts
    rows = Ladder("rows of a batch", shards, 1.0, max(config.batch_size // hosts, shards))
    ladders, parts = row_sizes(replace(config.data.ladders, batch=rows), setup.mesh)
    agree = partial(distributed.largest, "sizes of a batch") if hosts > 1 else None
    return open_loader(mixture, draw, config.data.loader, ladders=ladders, parts=parts, host=host, hosts=hosts, agree=agree)


def _share(setup: Layout) -> tuple[int, int]:
    """Which part of every batch this process reads, and of how many."""
    return distributed.share(NamedSharding(setup.mesh, batch_spec(1)), data_shards(setup.mesh))
