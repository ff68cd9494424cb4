"""What training begins with: where every weight lies, and the weights in their places, those that are trained apart.

``Layout`` knows shapes, dtypes and places and holds no numbers, so that a step can be compiled for devices that are not here. ``set_up`` fills it: weights
are read, or made, on the devices where they stay, so that no host and no device ever holds the whole model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from unipixel_jax.config import UniPixelConfig
from unipixel_jax.core.checkpoint import restore_leaves
from unipixel_jax.core.files import PARAMS
from unipixel_jax.core.mesh import data_shards, make_mesh
from unipixel_jax.core.params import abstract
from unipixel_jax.errors import UserError
from unipixel_jax.models.lora import add_lora
from unipixel_jax.models.partition import partitioned
from unipixel_jax.models.unipixel import UniPixelModel, abstract_model, unstack_towers
from unipixel_jax.train.config import TrainConfig
from unipixel_jax.train.optim import make_optimizer, schedule
from unipixel_jax.train.trainable import ADAPTERS, groups, trained


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """What a step changes.

    Attributes:
        step: int32 scalar, optimisation steps done.
        trained: float32 weights.
        opt_state: the optimizer's.
    """

    step: jax.Array
    trained: nnx.State
    opt_state: optax.OptState


@dataclass(frozen=True)
class Layout:
    """A run without its numbers.

    Attributes:
        config: of the run.
        model_config: sizes of the model, with the run's switches.
        state: shapes, dtypes and places (``jax.ShapeDtypeStruct``) of what a step changes.
        frozen: likewise of the weights that are not trained, in the compute dtype.
        graph: the model without weights.
        optimizer: of the trained ones.
        rate: learning rate of a step.
        mesh: the devices.
    """

    config: TrainConfig
    model_config: UniPixelConfig
    state: TrainState
    frozen: nnx.State
    graph: Any
    optimizer: optax.GradientTransformation
    rate: Callable[[int], jax.Array]
    mesh: Mesh

    def merge(self, own: nnx.State, rest: nnx.State) -> UniPixelModel:
        """The model of trained and frozen weights."""
        model = nnx.merge(self.graph, own, rest)
        if self.mesh.devices.flat[0].platform == "cpu":
            unstack_towers(model)  # on a CPU a scan copies what a layer reads and keeps (see core/stacking.py)
        return model

    def count(self) -> tuple[int, int]:
        """Numbers that are trained, and all."""
        sizes = [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (self.state.trained, self.frozen)]
        return sizes[0], sum(sizes)


@dataclass(frozen=True)
class Setup(Layout):
    """A run that can begin: ``state`` and ``frozen`` hold arrays."""


def with_switches(model_config: UniPixelConfig, config: TrainConfig) -> UniPixelConfig:
    """The model's configuration with what the run decides: objects of a sample, and whether clips are tracked."""
    objects = -1 if config.sample_objects is None else config.sample_objects
    return replace(model_config, sample_objects=objects, sam2_batch_mode=config.sam2_batch_mode)


def lay_out(config: TrainConfig, model_config: UniPixelConfig, total_steps: int, devices: Sequence[jax.Device]) -> Layout:
    """Decide where everything goes.

    Args:
        config: of the run.
        model_config: sizes of the model.
        total_steps: of the whole training.
        devices: of all hosts; they may be devices that are not here.

    Raises:
        UserError: unknown names of what is to be trained, a mesh that these devices do not form, or a batch that does not divide among them.
    """
    mesh = make_mesh(config.mesh, devices)
    if config.batch_size % data_shards(mesh):
        shards = data_shards(mesh)
        near = max(shards, round(config.batch_size / shards) * shards)
        raise UserError(f"a batch of {config.batch_size} does not divide among the {shards} parts of the mesh {dict(mesh.shape)}: use {near}, or another mesh")
    model_config = with_switches(model_config, config)

    def make(rngs: nnx.Rngs) -> UniPixelModel:
        model = abstract_model(model_config)
        return model if config.lora is None else add_lora(model, config.lora, rngs)

    parts: tuple[Any, ...] = nnx.split(partitioned(abstract(make), model_config, mesh), trained(config.trained), ...)
    graph, own, rest = parts
    rest = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, config.dtype, sharding=a.sharding), rest)
    optimizer = make_optimizer(config.optim, groups(own), total_steps)
    everywhere = NamedSharding(mesh, PartitionSpec())
    opt_state = optax.tree.map_params(
        optimizer,
        lambda a, weight: a if _not_here(a) else jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=weight.sharding),
        jax.eval_shape(optimizer.init, own),
        own,
        transform_non_params=lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=everywhere),
        is_leaf=_not_here,
    )
    step: Any = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
    state = TrainState(step, own, opt_state)
    return Layout(config, model_config, state, rest, graph, optimizer, schedule(config.optim, total_steps), mesh)


def set_up(layout: Layout, start: Path, state: TrainState | None = None) -> Setup:
    """Read the weights, each device's part into its place.

    Args:
        layout: the places.
        start: a converted directory of that model.
        state: where a run goes on, from its checkpoint: then only frozen weights are read, and nothing is ever there twice.

    Raises:
        UserError: the directory does not fit.
    """
    if state is None:
        own, rest = _filled(layout, start, layout.state.trained, layout.frozen, unread=nnx.State({}))
        begin = jax.jit(lambda own: (jnp.zeros((), jnp.int32), layout.optimizer.init(own)), out_shardings=places((layout.state.step, layout.state.opt_state)))
        step, opt_state = begin(own)
        state = TrainState(step, own, opt_state)
    else:
        (rest,) = _filled(layout, start, layout.frozen, unread=layout.state.trained)
    fields = {field.name: getattr(layout, field.name) for field in dataclasses.fields(Layout)}
    return Setup(**fields | {"state": state, "frozen": rest})


def _filled(layout: Layout, start: Path, *states: nnx.State, unread: nnx.State) -> list[nnx.State]:
    """Weights for all places but those ``unread``: those of a converted directory, and fresh adapters, which it has none of."""
    parts: list[dict[Any, Any]] = [dict(nnx.to_flat_state(state)) for state in states]
    wanted: dict[Any, Any] = {path: leaf.get_value() for part in parts for path, leaf in part.items()}
    fresh = {path: leaf for path, leaf in wanted.items() if path[-1] in ADAPTERS}
    others: dict[Any, Any] = {path: leaf.get_value() for path, leaf in nnx.to_flat_state(unread) if path[-1] not in ADAPTERS}
    values = restore_leaves(start / PARAMS, {path: leaf for path, leaf in wanted.items() if path not in fresh}, others) | _adapters(layout, fresh)
    return [nnx.from_flat_state({path: leaf.replace(values[path]) for path, leaf in part.items()}) for part in parts]


def _adapters(layout: Layout, wanted: dict[Any, jax.ShapeDtypeStruct]) -> dict[Any, jax.Array]:
    """Fresh adapters, each device's part made in its place; the numbers do not depend on the mesh."""
    lora = layout.config.lora
    if lora is None or not wanted:
        return {}

    def make() -> dict[Any, jax.Array]:
        model = add_lora(abstract_model(layout.model_config), lora, nnx.Rngs(layout.config.seed))
        made = {path: leaf.get_value() for path, leaf in nnx.to_flat_state(nnx.state(model)) if path[-1] in ADAPTERS}
        return {path: made[path].astype(place.dtype) for path, place in wanted.items()}

    return jax.jit(make, out_shardings=places(wanted))()


def _not_here(a: Any) -> bool:
    """True where a part of the optimizer that is for some weights only has nothing."""
    return isinstance(a, optax.MaskedNode)


def places(tree: Any) -> Any:
    """The shardings of a tree of arrays, or of shapes that know their places."""
    return jax.tree.map(lambda a: a.sharding, tree)
