"""One optimisation step: gradients of some batches, then an update.

The two are programs of their own, so that the batches of a step may have different shapes, and each shape compiles one program.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from unipixel_jax.core.dropout import with_keys
from unipixel_jax.train.objective import LossParts, TrainBatch, objective
from unipixel_jax.train.setup import Setup, TrainState

Gradients = Callable[[nnx.State, nnx.State, TrainBatch, jax.Array], tuple[nnx.State, LossParts]]
Loss = Callable[[nnx.State, nnx.State, TrainBatch], LossParts]
Update = Callable[[TrainState, nnx.State, jax.Array], tuple[TrainState, "StepNumbers"]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StepNumbers:
    """Of one update: norm of all gradients, norms by learning-rate group, and whether loss and gradients were finite (else nothing was changed)."""

    grad_norm: jax.Array
    group_norms: dict[str, jax.Array]
    finite: jax.Array


def make_gradients(setup: Setup) -> Gradients:
    """A compiled function of trained weights, frozen weights, a batch and a random key, to gradients and losses."""
    config = setup.config

    @jax.jit
    def gradients(own: nnx.State, rest: nnx.State, batch: TrainBatch, key: jax.Array) -> tuple[nnx.State, LossParts]:
        def loss(own: nnx.State) -> tuple[jax.Array, LossParts]:
            model = setup.merge(own, rest)
            model = with_keys(model, key) if config.dropout else model
            return objective(model, batch, jnp.dtype(config.dtype), config.losses, config.remat)

        (_, parts), grads = jax.value_and_grad(loss, has_aux=True)(own)
        return grads, parts

    return gradients


def make_loss(setup: Setup) -> Loss:
    """A compiled function of trained weights, frozen weights and a batch to its losses, without dropout."""
    config = setup.config

    @jax.jit
    def loss(own: nnx.State, rest: nnx.State, batch: TrainBatch) -> LossParts:
        return objective(setup.merge(own, rest), batch, jnp.dtype(config.dtype), config.losses, "none")[1]

    return loss


def make_update(setup: Setup, groups: Any) -> Update:
    """A compiled function of state, mean gradients and loss to the next state. A loss or gradient that is not finite leaves weights and moments alone.

    Args:
        setup: of the run.
        groups: a tree like the trained weights, with a ``Group`` for each array.
    """

    def update(state: TrainState, grads: nnx.State, loss: jax.Array) -> tuple[TrainState, StepNumbers]:
        squares: dict[str, jax.Array] = {}
        for grad, group in zip(jax.tree.leaves(grads), jax.tree.leaves(groups), strict=True):
            squares[group.rate] = squares.get(group.rate, jnp.zeros((), jnp.float32)) + jnp.sum(jnp.square(grad))
        norm = jnp.sqrt(sum(squares.values(), jnp.zeros((), jnp.float32)))
        finite = jnp.isfinite(norm) & jnp.isfinite(loss)

        def apply() -> tuple[nnx.State, optax.OptState]:
            changes, opt_state = setup.optimizer.update(grads, state.opt_state, state.trained)
            return optax.apply_updates(state.trained, changes), opt_state

        own, opt_state = jax.lax.cond(finite, apply, lambda: (state.trained, state.opt_state))
        return TrainState(state.step + 1, own, opt_state), StepNumbers(norm, jax.tree.map(jnp.sqrt, squares), finite)

    return jax.jit(update, donate_argnums=0)


def step_key(seed: int, step: int, batch: int) -> jax.Array:
    """The random key of one batch of one step."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), batch)


@jax.jit
def add(total: nnx.State, grads: nnx.State) -> nnx.State:
    """The sum of two gradients."""
    return jax.tree.map(jnp.add, total, grads)


@jax.jit
def scale(grads: nnx.State, share: jax.Array) -> nnx.State:
    """Gradients times a number."""
    return jax.tree.map(lambda g: g * share, grads)
