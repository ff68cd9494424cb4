"""What training begins with: weights in their places, the part of them that is trained apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from unipixel_jax.config import UniPixelConfig
from unipixel_jax.core.checkpoint import restore_model
from unipixel_jax.core.files import PARAMS
from unipixel_jax.errors import UserError
from unipixel_jax.models.lora import add_lora
from unipixel_jax.models.unipixel import UniPixelModel, abstract_model, unstack_towers, with_config
from unipixel_jax.train.config import TrainConfig
from unipixel_jax.train.optim import make_optimizer, schedule
from unipixel_jax.train.trainable import groups, trained

DATA = "data"
"""The mesh axis over which the samples of a batch are divided."""


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
class Setup:
    """A run that can begin.

    Attributes:
        config: of the run.
        model_config: sizes of the model, with the run's switches.
        state: before the first step.
        frozen: the weights that are not trained, in the compute dtype.
        merge: the model of trained and frozen weights.
        optimizer: of the trained ones.
        rate: learning rate of a step.
        mesh: the devices.
    """

    config: TrainConfig
    model_config: UniPixelConfig
    state: TrainState
    frozen: nnx.State
    merge: Callable[[nnx.State, nnx.State], UniPixelModel]
    optimizer: optax.GradientTransformation
    rate: Callable[[int], jax.Array]
    mesh: Mesh

    def count(self) -> tuple[int, int]:
        """Numbers that are trained, and all."""
        sizes = [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (self.state.trained, self.frozen)]
        return sizes[0], sum(sizes)


def with_switches(model_config: UniPixelConfig, config: TrainConfig) -> UniPixelConfig:
    """The model's configuration with what the run decides: objects of a sample, and whether clips are tracked."""
    objects = -1 if config.sample_objects is None else config.sample_objects
    return replace(model_config, sample_objects=objects, sam2_batch_mode=config.sam2_batch_mode)


def data_mesh(batch_size: int, devices: Sequence[jax.Device]) -> Mesh:
    """Devices in one row, among which the samples of a batch are divided.

    Raises:
        UserError: the batch does not divide.
    """
    if batch_size % len(devices):
        raise UserError(f"a batch of {batch_size} does not divide among {len(devices)} devices: use a multiple of {len(devices)}")
    return Mesh(np.array(devices), (DATA,), axis_types=(AxisType.Auto,))


def set_up(config: TrainConfig, start: Path, model_config: UniPixelConfig, total_steps: int, devices: Sequence[jax.Device] | None = None) -> Setup:
    """Read the weights and divide them.

    Args:
        config: of the run.
        start: a converted directory.
        model_config: its sizes.
        total_steps: of the whole training.
        devices: among which batches are divided; None for all local ones.

    Raises:
        UserError: the directory does not fit, unknown names of what is to be trained, or a batch that does not divide among the devices.
    """
    mesh = data_mesh(config.batch_size, devices or jax.local_devices())
    here = NamedSharding(mesh, PartitionSpec())
    model_config = with_switches(model_config, config)
    model = with_config(restore_model(start / PARAMS, abstract_model(model_config)), model_config)
    if config.lora is not None:
        model = add_lora(model, config.lora, nnx.Rngs(config.seed))
    parts: tuple[Any, ...] = nnx.split(model, trained(config.trained), ...)
    graph, own, rest = parts
    own = jax.tree.map(lambda a: jax.device_put(a.astype(jnp.float32), here), own)
    rest = jax.tree.map(lambda a: jax.device_put(a.astype(config.dtype), here), rest)
    optimizer = make_optimizer(config.optim, groups(own), total_steps)
    state = TrainState(jax.device_put(jnp.zeros((), jnp.int32), here), own, jax.jit(optimizer.init, out_shardings=here)(own))

    def merge(own: nnx.State, rest: nnx.State) -> UniPixelModel:
        model = nnx.merge(graph, own, rest)
        if jax.default_backend() == "cpu":
            unstack_towers(model)  # on a CPU a scan copies what a layer reads and keeps (see core/stacking.py)
        return model

    return Setup(config, model_config, state, rest, merge, optimizer, schedule(config.optim, total_steps), mesh)


def abstract_state(state: TrainState) -> Any:
    """Shapes, dtypes and places of a state's arrays, to restore a checkpoint into."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state)
