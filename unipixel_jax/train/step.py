"""The programs of an optimisation step: the gradients of a batch, their sum over batches, and the update.

Gradients and update are separate programs, so that the batches of a step may have different shapes, each of which compiles one program of gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from unipixel_jax.batch import TrainBatch
from unipixel_jax.core.dropout import with_keys
from unipixel_jax.core.mesh import OnMesh, compiler_options
from unipixel_jax.train.objective import LossParts, objective
from unipixel_jax.train.setup import Layout, TrainState, shardings
from unipixel_jax.train.trainable import groups


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StepMetrics:
    """The metrics of one update.

    Attributes:
        grad_norm: float32 scalar, the norm of all gradients before clipping.
        group_norms: the norms of the gradients by group of learning rate, float32 scalars.
        finite: boolean scalar, whether loss and gradients were finite; where they were not, the update left weights and moments unchanged.
    """

    grad_norm: jax.Array
    group_norms: dict[str, jax.Array]
    finite: jax.Array


def make_gradients(setup: Layout) -> OnMesh:
    """Return a compiled function from trained weights, frozen weights, a batch and a random key to gradients, sharded as their weights, and losses."""
    config = setup.config

    def gradients(own: nnx.State, rest: nnx.State, batch: TrainBatch, key: jax.Array) -> tuple[nnx.State, LossParts]:
        def loss(own: nnx.State) -> tuple[jax.Array, LossParts]:
            model = setup.merge(own, rest)
            model = with_keys(model, key) if config.dropout else model
            return objective(model, batch, jnp.dtype(config.dtype), config.losses, config.remat)

        (_, parts), grads = jax.value_and_grad(loss, has_aux=True)(own)
        return grads, parts

    out = (shardings(setup.state.trained), NamedSharding(setup.mesh, PartitionSpec()))
    return OnMesh(setup.mesh, jax.jit(gradients, out_shardings=out, compiler_options=compiler_options(setup.mesh)))


def make_loss(setup: Layout) -> OnMesh:
    """Return a compiled function from trained weights, frozen weights and a batch to the losses of the batch, without dropout."""
    config = setup.config

    def loss(own: nnx.State, rest: nnx.State, batch: TrainBatch) -> LossParts:
        return objective(setup.merge(own, rest), batch, jnp.dtype(config.dtype), config.losses, "none")[1]

    return OnMesh(setup.mesh, jax.jit(loss, out_shardings=NamedSharding(setup.mesh, PartitionSpec()), compiler_options=compiler_options(setup.mesh)))


def make_update(setup: Layout) -> OnMesh:
    """Return a compiled function from state, mean gradients and loss to the next state and ``StepMetrics``.

    The state is donated. Where the loss or a gradient is not finite, weights and moments stay unchanged, and only the step's number grows.
    """
    owners = groups(setup.state.trained)
    offloaded = setup.config.offload_optimizer

    def update(state: TrainState, grads: nnx.State, loss: jax.Array) -> tuple[TrainState, StepMetrics]:
        squares: dict[str, jax.Array] = {}
        for grad, group in zip(jax.tree.leaves(grads), jax.tree.leaves(owners), strict=True):
            squares[group.rate] = squares.get(group.rate, jnp.zeros((), jnp.float32)) + jnp.sum(jnp.square(grad))
        norm = jnp.sqrt(sum(squares.values(), jnp.zeros((), jnp.float32)))
        finite = jnp.isfinite(norm) & jnp.isfinite(loss)

        before = jax.device_put(state.opt_state, jax.memory.Space.Device) if offloaded else state.opt_state

        def apply() -> tuple[nnx.State, optax.OptState]:
            changes, opt_state = setup.optimizer.update(grads, before, state.trained)
            return optax.apply_updates(state.trained, changes), opt_state

        own, opt_state = jax.lax.cond(finite, apply, lambda: (state.trained, before))
        return TrainState(state.step + 1, own, opt_state), StepMetrics(norm, jax.tree.map(jnp.sqrt, squares), finite)

    out = (shardings(setup.state), NamedSharding(setup.mesh, PartitionSpec()))
    return OnMesh(setup.mesh, jax.jit(update, donate_argnums=0, out_shardings=out))


def step_key(seed: int, step: int, batch: int) -> jax.Array:
    """Return the random key of one batch of one step."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), batch)


@partial(jax.jit, donate_argnums=0)
def add(total: nnx.State, grads: nnx.State) -> nnx.State:
    """Return the sum of two trees of gradients; the first is donated."""
    return jax.tree.map(jnp.add, total, grads)


@partial(jax.jit, donate_argnums=0)
def scale(grads: nnx.State, share: jax.Array) -> nnx.State:
    """Return gradients multiplied by ``share``, a float32 scalar; the gradients are donated."""
    return jax.tree.map(lambda g: g * share, grads)
