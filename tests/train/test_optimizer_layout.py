"""These tests check the shardings of the state of every optimizer on a mesh."""

from dataclasses import replace
from typing import get_args

import jax
import jax.numpy as jnp
import pytest
from micro_run import MODEL, micro_config

from unipixel_jax.core.mesh import MeshConfig
from unipixel_jax.train.optim import OptimConfig, Optimizer
from unipixel_jax.train.setup import lay_out

WIDER = replace(
    MODEL,
    vision=replace(MODEL.vision, out_hidden_size=128),
    text=replace(MODEL.text, hidden_size=128, mrope_section=(16, 8, 8)),
)


@pytest.mark.parametrize("name", get_args(Optimizer))
def test_every_optimizer_has_a_place_for_its_state(name):
    """Arrays with the shape of a weight are sharded as the weight is, and all others are on every device; nothing is computed."""
    config = micro_config("start", optim=OptimConfig(optimizer=name), mesh=MeshConfig("fsdp"))
    layout = lay_out(config, WIDER, 6, jax.devices()[:8])
    state, weights = jax.tree.leaves(layout.state.opt_state), jax.tree.leaves(layout.state.trained)
    grads = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, jnp.float32), layout.state.trained)
    updated = jax.eval_shape(layout.optimizer.update, grads, layout.state.opt_state, layout.state.trained)[1]
    assert [a.shape for a in jax.tree.leaves(updated)] == [a.shape for a in state]
    placed = {(weight.shape, weight.sharding) for weight in weights}
    own = [a for a in state if (a.shape, a.sharding) in placed]
    others = [a for a in state if (a.shape, a.sharding) not in placed]
    assert own and all(a.sharding.is_fully_replicated for a in others)
    # the embedding of 520 tokens is one of the matrices of which Adafactor keeps rows and columns
    assert ((520,) in {a.shape for a in others}) == (name == "adafactor")
