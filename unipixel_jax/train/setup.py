"""The setup of a run: the sharding of every weight, and the weights themselves, split into trained and frozen ones.

``Layout`` holds shapes, dtypes and shardings but no arrays, so that a step can be compiled for devices that this machine does not have. ``set_up`` adds the
arrays: each shard is read, or made, on the device where it stays, so that no host and no device ever holds the whole model.
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
from unipixel_jax.core.sharding import HOST_MEMORY
from unipixel_jax.errors import UserError
from unipixel_jax.models.lora import add_lora, trained_biases
from unipixel_jax.models.partition import partitioned
from unipixel_jax.models.quantised import require_full
from unipixel_jax.models.unipixel import UniPixelModel, abstract_model, unstack_towers
from unipixel_jax.train.config import TrainConfig
from unipixel_jax.train.optim import make_optimizer, schedule
from unipixel_jax.train.trainable import ADAPTERS, groups, trained


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """The state that an optimisation step changes.

    Attributes:
        step: int32 scalar, the number of optimisation steps done.
        trained: the trained weights, float32.
        opt_state: the state of the optimizer.
    """

    step: jax.Array
    trained: nnx.State
    opt_state: optax.OptState


@dataclass(frozen=True)
class Layout:
    """A run without its arrays.

    Attributes:
        config: the run's configuration.
        model_config: the model's configuration, with the run's switches.
        state: a ``jax.ShapeDtypeStruct`` with shape, dtype and sharding for each array that a step changes.
        frozen: the same for each weight that is not trained, in the compute dtype.
        graph: the structure of the model (``nnx.GraphDef``).
        optimizer: the optimizer of the trained weights.
        rate: the function from a step's number to its learning rate.
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
        """Return the model of trained weights ``own`` and frozen weights ``rest``."""
        model = nnx.merge(self.graph, own, rest)
        if self.mesh.devices.flat[0].platform == "cpu":
            unstack_towers(model)  # on a CPU a scan would copy the weights of each layer (see core/stacking.py)
        return model

    def count(self) -> tuple[int, int]:
        """Return the number of trained parameters, and of all parameters."""
        sizes = [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (self.state.trained, self.frozen)]
        return sizes[0], sum(sizes)


@dataclass(frozen=True)
class Setup(Layout):
    """A run that is ready to begin: a layout whose ``state`` and ``frozen`` hold arrays."""


def with_switches(model_config: UniPixelConfig, config: TrainConfig) -> UniPixelConfig:
    """Return the model's configuration with the run's choices: how many objects of a sample are trained, and whether clips are tracked."""
    objects = -1 if config.sample_objects is None else config.sample_objects
    return replace(model_config, sample_objects=objects, sam2_batch_mode=config.sam2_batch_mode)


def lay_out(config: TrainConfig, model_config: UniPixelConfig, total_steps: int, devices: Sequence[jax.Device]) -> Layout:
    """Return the layout of a run: its mesh, the shardings of all weights, and the optimizer.

    Args:
        config: the run's configuration.
        model_config: the model's configuration.
        total_steps: the number of steps of the whole training.
        devices: the devices of all hosts, which this machine need not have.

    Raises:
        UserError: a part to train is unknown, these devices do not form the mesh, or the batch does not divide among them.
    """
    require_full(model_config, "this model", "training")
    mesh = make_mesh(config.mesh, devices)
    if config.batch_size % data_shards(mesh):
        shards = data_shards(mesh)
        near = max(shards, round(config.batch_size / shards) * shards)
        raise UserError(f"a batch of {config.batch_size} does not divide among the {shards} parts of the mesh {dict(mesh.shape)}: use {near}, or another mesh")
    model_config = with_switches(model_config, config)

    def make(rngs: nnx.Rngs) -> UniPixelModel:
        model = abstract_model(model_config)
        return model if config.lora is None else add_lora(model, config.lora, rngs)

    model = partitioned(abstract(make), model_config, mesh)
    biases = set() if config.lora is None else trained_biases(model, config.lora)
    parts: tuple[Any, ...] = nnx.split(model, trained(config.trained, biases), ...)
    graph, own, rest = parts
    rest = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, config.dtype, sharding=a.sharding), rest)
    optimizer = make_optimizer(config.optim, groups(own), total_steps)
    everywhere = NamedSharding(mesh, PartitionSpec())

    def place(weight: Any) -> NamedSharding:
        return weight.sharding.with_memory_kind(HOST_MEMORY) if config.offload_optimizer else weight.sharding

    opt_state = optax.tree.map_params(
        optimizer,
        # rows and columns that stand for a matrix (Adafactor) are small, and on every device
        lambda a, weight: a if _is_masked(a) else jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place(weight) if a.shape == weight.shape else everywhere),
        jax.eval_shape(optimizer.init, own),
        own,
        transform_non_params=lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=everywhere),
        is_leaf=_is_masked,
    )
    step: Any = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
    state = TrainState(step, own, opt_state)
    return Layout(config, model_config, state, rest, graph, optimizer, schedule(config.optim, total_steps), mesh)


def set_up(layout: Layout, start: Path, state: TrainState | None = None) -> Setup:
    """Return a run that is ready to begin: read the weights, each shard straight to its device.

    Args:
        layout: the shapes, dtypes and shardings.
        start: a converted directory of that model.
        state: the state from a checkpoint with which the run continues. Only frozen weights are then read, so that no weight is in memory twice.

    Raises:
        UserError: the directory does not hold the weights of that model, or the devices have no access to the hosts' memory that the optimizer is to use.
    """
    if layout.config.offload_optimizer:
        _require_host_memory(layout.mesh.local_devices[0])
    if state is None:
        own, rest = _filled(layout, start, layout.state.trained, layout.frozen, unread=nnx.State({}))
        where = shardings((layout.state.step, layout.state.opt_state))
        step, opt_state = jax.jit(lambda own: (jnp.zeros((), jnp.int32), layout.optimizer.init(own)), out_shardings=where)(own)
        state = TrainState(step, own, opt_state)
    else:
        (rest,) = _filled(layout, start, layout.frozen, unread=layout.state.trained)
    fields = {field.name: getattr(layout, field.name) for field in dataclasses.fields(Layout)}
    return Setup(**fields | {"state": state, "frozen": rest})


def _require_host_memory(device: jax.Device) -> None:
    kinds = [memory.kind for memory in device.addressable_memories()]
    if HOST_MEMORY not in kinds:
        found = f"{device.device_kind} has {', '.join(kinds)}"
        raise UserError(f"offload_optimizer needs the memory {HOST_MEMORY!r}, and {found}: train with --no-offload-optimizer")


def _filled(layout: Layout, start: Path, *states: nnx.State, unread: nnx.State) -> list[nnx.State]:
    """Return abstract states filled with the weights of a converted directory and with fresh adapters; ``unread`` are the model's other weights."""
    parts: list[dict[Any, Any]] = [dict(nnx.to_flat_state(state)) for state in states]
    wanted: dict[Any, Any] = {path: leaf.get_value() for part in parts for path, leaf in part.items()}
    fresh = {path: leaf for path, leaf in wanted.items() if path[-1] in ADAPTERS}
    others: dict[Any, Any] = {path: leaf.get_value() for path, leaf in nnx.to_flat_state(unread) if path[-1] not in ADAPTERS}
    values = restore_leaves(start / PARAMS, {path: leaf for path, leaf in wanted.items() if path not in fresh}, others) | _adapters(layout, fresh)
    return [nnx.from_flat_state({path: leaf.replace(values[path]) for path, leaf in part.items()}) for part in parts]


def _adapters(layout: Layout, wanted: dict[Any, jax.ShapeDtypeStruct]) -> dict[Any, jax.Array]:
    """Return fresh adapters by path, each shard made on its device; their values do not depend on the mesh."""
    lora = layout.config.lora
    if lora is None or not wanted:
        return {}

    def make() -> dict[Any, jax.Array]:
        model = add_lora(abstract_model(layout.model_config), lora, nnx.Rngs(layout.config.seed))
        made = {path: leaf.get_value() for path, leaf in nnx.to_flat_state(nnx.state(model)) if path[-1] in ADAPTERS}
        return {path: made[path].astype(leaf.dtype) for path, leaf in wanted.items()}

    return jax.jit(make, out_shardings=shardings(wanted))()


def _is_masked(a: Any) -> bool:
    """Return whether an entry of the optimizer's state stands for a weight that this part of the optimizer does not update, and so is no array."""
    return isinstance(a, optax.MaskedNode)


def shardings(tree: Any) -> Any:
    """Return the tree of the shardings of arrays, or of each ``jax.ShapeDtypeStruct`` that has one."""
    return jax.tree.map(lambda a: a.sharding, tree)
