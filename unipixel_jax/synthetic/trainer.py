"""Trains some parts of the model on drawn scenes, with a loss of the stage's own.

B scenes of a step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from numpy.typing import NDArray

from unipixel_jax.core.trees import KeyPath
from unipixel_jax.data.annotation import Annotation
from unipixel_jax.data.loader import Loader, LoaderOptions
from unipixel_jax.data.pipeline import open_mixture
from unipixel_jax.models.unipixel import UniPixelModel
from unipixel_jax.train.metrics import Watch
from unipixel_jax.train.optim import OptimConfig, make_optimizer
from unipixel_jax.train.trainable import Predicate, groups

LOG_EVERY = 50

M = TypeVar("M", bound=UniPixelModel)
Weights = dict[KeyPath, np.ndarray]


@dataclass(frozen=True)
class StageConfig:
    """How long a stage trains, and how fast.

    Attributes:
        steps: of the optimizer.
        batch_size: B.
        optim: learning rate and the like.
    """

    steps: int
    batch_size: int
    optim: OptimConfig


def train_stage(
    model: M,
    parts: Predicate,
    stage: StageConfig,
    run_dir: Path,
    seed: int,
    draw: Callable[[Annotation, np.random.Generator], Any],
    collate: Callable[[Sequence[Any]], Any],
    loss: Callable[[M, Any], tuple[jax.Array, dict[str, jax.Array]]],
) -> M:
    """Train some weights of a model.

    Args:
        model: before the stage.
        parts: which weights are trained.
        stage: how long and how fast.
        run_dir: a folder for the metrics, which are written as those of a run.
        seed: of the scenes.
        draw: makes a sample; the annotation that it is given says nothing.
        collate: makes arrays of samples.
        loss: a function of the model and such arrays to the loss and metrics.

    Returns:
        The model after the stage.
    """
    split: tuple[Any, ...] = nnx.split(model, parts, ...)
    graph, own, rest = split
    optimizer = make_optimizer(stage.optim, groups(own), stage.steps)

    @jax.jit
    def step(own: nnx.State, state: optax.OptState, batch: Any) -> tuple[nnx.State, optax.OptState, dict[str, jax.Array]]:
        grads, metrics = jax.grad(lambda own: loss(nnx.merge(graph, own, rest), batch), has_aux=True)(own)
        changes, state = optimizer.update(grads, state, own)
        return optax.apply_updates(own, changes), state, metrics

    state, recent = optimizer.init(own), []
    run_dir.mkdir(parents=True, exist_ok=True)
    mixture = open_mixture("shapes_image", run_dir, stage.batch_size, seed)
    loader: Loader[Any, Any] = Loader(mixture, draw, collate, LoaderOptions(workers=0, threads=1, buffer=32))
    with loader, Watch(run_dir, {}, stage.steps, 0) as watch:
        for number in range(1, stage.steps + 1):
            own, state, metrics = step(own, state, next(loader).arrays)
            recent.append(metrics)
            watch.advance(number)
            if number % LOG_EVERY == 0 or number == stage.steps:
                watch.write(number, jax.tree.map(lambda *a: float(np.mean(np.stack(a))), *recent))
                recent = []
    return nnx.merge(graph, own, rest)


def weights_of(model: nnx.Module, parts: Predicate) -> Weights:
    """Some of a model's weights on the host, by path."""
    return {path: np.asarray(leaf.get_value()) for path, leaf in nnx.to_flat_state(nnx.state(model, parts))}  # type: ignore[misc]


def load_weights(model: UniPixelModel, weights: Weights) -> None:
    """Put weights into a model in place; those that it does not have are passed over."""
    flat = nnx.to_flat_state(nnx.state(model))
    for path, leaf in flat:
        if path in weights:
            leaf.set_value(jnp.asarray(weights[path]))  # type: ignore[index]
    nnx.update(model, nnx.from_flat_state(flat))


def stack_samples(samples: Sequence[tuple[NDArray[Any], ...]]) -> tuple[NDArray[Any], ...]:
    """The arrays of all samples, each with a leading axis B."""
    return tuple(np.stack(arrays) for arrays in zip(*samples, strict=True))
