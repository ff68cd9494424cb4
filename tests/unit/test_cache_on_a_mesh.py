"""A cache whose heads are sharded over more devices than there are key heads, and over as many or fewer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from micro_models import MICRO, random

from unipixel_jax.core.mesh import MeshConfig, OnMesh, make_mesh
from unipixel_jax.models.partition import partitioned
from unipixel_jax.models.qwen_vl.cache import KVCache
from unipixel_jax.models.unipixel import UniPixelModel, abstract_model
from unipixel_jax.plan.hlo import read_costs

F32 = jnp.float32
LENGTH, SLOTS, ROWS = 6, 16, 2
TEXT = dataclasses.replace(MICRO.text, num_attention_heads=8, num_key_value_heads=2, hidden_size=64, vocab_size=96)
CONFIG = dataclasses.replace(MICRO, text=TEXT, vision=dataclasses.replace(MICRO.vision, out_hidden_size=64))


@pytest.fixture(scope="module")
def model():
    return UniPixelModel(CONFIG, nnx.Rngs(0))


def read_and_continue(model, x):
    """The states of a prompt and of three tokens after it, and the cache."""
    positions = jnp.broadcast_to(jnp.arange(x.shape[1]), (3, ROWS, x.shape[1]))
    segments = jnp.ones((ROWS, x.shape[1]), jnp.int32)
    states, cache = model.text.extend(x[:, :LENGTH], positions[:, :, :LENGTH], segments[:, :LENGTH], KVCache.empty(CONFIG.text, ROWS, SLOTS, F32), 0)
    found = [states]
    for at in range(LENGTH, LENGTH + 3):
        states, cache = model.text.extend(x[:, at : at + 1], positions[:, :, at : at + 1], segments[:, at : at + 1], cache, at)
        found.append(states)
    return jnp.concatenate(found, axis=1), cache


@pytest.mark.parametrize(("tensor", "heads"), [(2, 2), (4, 4), (8, 8)])
def test_each_device_holds_the_head_that_it_needs(rng, model, tensor, heads):
    x = random(rng, ROWS, LENGTH + 3, CONFIG.text.hidden_size)
    wanted, plain = jax.jit(read_and_continue)(model, x)
    mesh = make_mesh(MeshConfig("fsdp_tp", tensor=tensor), jax.devices()[:tensor])
    places, structure = jax.tree.flatten(partitioned(abstract_model(CONFIG), CONFIG, mesh))
    placed = jax.tree.unflatten(structure, [jax.device_put(a, place.sharding) for a, place in zip(jax.tree.leaves(model), places, strict=True)])
    found, cache = OnMesh(mesh, jax.jit(read_and_continue))(placed, x)
    np.testing.assert_allclose(found, wanted, atol=2e-5)
    assert cache.k.shape[2] == heads and cache.k.sharding.shard_shape(cache.k.shape)[2] == 1
    # each device holds the whole of one key head, and those that share one hold the same
    for shard in cache.k.addressable_shards:
        own = shard.index[2].start or 0
        np.testing.assert_allclose(shard.data[:, :, 0], plain.k[:, :, own * 2 // heads], atol=2e-5)


@pytest.mark.parametrize("tensor", [2, 4, 8])
def test_a_token_moves_activations_between_devices_and_no_weights(tensor):
    """Of a layer each device sends two sums over devices of ROWS states, and no program of a token sends as much as a weight has."""
    mesh = make_mesh(MeshConfig("fsdp_tp", tensor=tensor), jax.devices()[:tensor])
    model = partitioned(abstract_model(CONFIG), CONFIG, mesh, F32)

    def token(model, cache, x):
        return model.text.extend(x, jnp.zeros((3, ROWS, 1), jnp.int32), jnp.ones((ROWS, 1), jnp.int32), cache, 5)

    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        cache = jax.eval_shape(lambda: KVCache.empty(CONFIG.text, ROWS, SLOTS, F32))
    place = lambda a, *spec: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=jax.NamedSharding(mesh, jax.P(*spec)))  # noqa: E731
    k = place(cache.k, None, None, "tensor")
    x = place(jax.ShapeDtypeStruct((ROWS, 1, CONFIG.text.hidden_size), F32))
    compiled = OnMesh(mesh, jax.jit(token)).lower(model, KVCache(k, k, place(cache.segments)), x).compile()
    costs = read_costs(compiled.as_text(), [0] * tensor, unknown_trips=1)
    state = ROWS * CONFIG.text.hidden_size * 4
    assert costs.sent <= 2 * CONFIG.text.num_hidden_layers * 2 * state * (tensor - 1) / tensor
    assert {c.kind for c in costs.collectives} == {"all-reduce"}
