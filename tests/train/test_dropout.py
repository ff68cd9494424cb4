"""Dropout in training: nothing is dropped without keys, layers, frames and samples draw differently, the backward pass draws the same, and the mean stays."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.unit.micro_models import MICRO, SAM2, copied, micro_model, random
from unipixel_jax.core import stacking
from unipixel_jax.core.axes import EMBED
from unipixel_jax.core.dropout import DropoutKey, Random, fold, with_keys
from unipixel_jax.core.stacking import Remat
from unipixel_jax.models.layers import Dropout, DropPath, Linear
from unipixel_jax.models.sam2 import tracker
from unipixel_jax.models.sam2.hiera import DROP_PATH
from unipixel_jax.models.sam2.memory import DROPOUT
from unipixel_jax.models.unipixel import abstract_model
from unipixel_jax.ops.dropout import dropout

KEY = jax.random.key(5)


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.linear = Linear(4, 4, (EMBED, EMBED), rngs)
        self.dropout = Dropout(0.5)


class Tower(nnx.Module):
    """Stacked blocks between two dropouts."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = Dropout(0.25)
        self.embed = Linear(4, 4, (EMBED, EMBED), rngs)
        self.blocks = stacking.stack(Block, 3, rngs)

    def drops(self, x: jax.Array, remat: Remat = "none") -> jax.Array:
        """Return x after the dropout of each of the three layers, stacked: [3, ...]."""
        return stacking.run(lambda block, carry, _: (carry, block.dropout(x)), self.blocks, x, np.arange(3), remat)[1]


def keys_of(module):
    return [np.asarray(jax.random.key_data(a)) for a in jax.tree.leaves(nnx.state(module, DropoutKey))]


def test_at_rest_there_is_no_leaf_and_nothing_is_dropped():
    tower, x = Tower(nnx.Rngs(0)), jnp.ones((2, 4))
    assert len(jax.tree.leaves(tower)) == 4
    assert jnp.array_equal(tower.first(x), x) and jnp.array_equal(DropPath()(x, 0.9), x)
    randoms = [m for _, m in nnx.iter_modules(micro_model()) if isinstance(m, Random)]
    assert len(randoms) == 2 * 5 + 6 and all(m.key is None for m in randoms)
    assert not jax.tree.leaves(nnx.state(abstract_model(MICRO), DropoutKey))


def test_every_module_and_every_layer_gets_a_key_of_its_own():
    model = with_keys(micro_model(), KEY)
    keys = np.concatenate([k.reshape(-1, 2) for k in keys_of(model)])
    blocks = sum(SAM2.stages)
    # two of each Hiera block, six of each layer of the memory attention
    assert len(keys) == 2 * blocks + 6 * SAM2.memory_attention_layers
    assert len(np.unique(keys, axis=0)) == len(keys)
    assert all(m.key is None for _, m in nnx.iter_modules(micro_model()) if isinstance(m, Random))
    assert np.array_equal(keys_of(with_keys(micro_model(), KEY))[0], keys_of(model)[0])
    assert not np.array_equal(keys_of(with_keys(micro_model(), jax.random.key(6)))[0], keys_of(model)[0])


@pytest.mark.parametrize("remat", ["none", "full"])
def test_a_scan_hands_each_layer_its_own(remat):
    tower = with_keys(Tower(nnx.Rngs(0)), KEY)
    x = jnp.ones((8, 64))
    drops = np.asarray(jax.jit(lambda t: t.drops(x, remat))(tower))
    assert not np.array_equal(drops[0], drops[1]) and not np.array_equal(drops[1], drops[2])
    loop = copied(tower)
    loop.blocks = stacking.unstack(tower.blocks)
    assert np.array_equal(loop.drops(x), drops)


def test_unstacked_blocks_get_keys_too():
    tower = Tower(nnx.Rngs(0))
    tower.blocks = stacking.unstack(tower.blocks)
    assert [k.shape for k in keys_of(with_keys(tower, KEY))] == [(2,)] * 4


def test_the_backward_pass_draws_the_same_numbers():
    """The gradient of the sum of squares of what stayed is twice that, scaled: zero exactly where the forward pass dropped."""
    tower, x = with_keys(Tower(nnx.Rngs(0)), KEY), random(np.random.default_rng(0), 8, 64)

    def loss(x, remat):
        _, y = stacking.run(lambda block, carry, _: (carry, block.dropout(carry)), tower.blocks, x, np.arange(3), remat)
        return jnp.sum(y**2)

    kept, expected = np.asarray(tower.drops(x)), jax.grad(lambda x: loss(x, "none"))(x)
    np.testing.assert_allclose(expected, 4 * np.sum(kept, axis=0), rtol=1e-6)
    assert np.array_equal(jax.jit(jax.grad(lambda x: loss(x, "full")))(x), expected)


def test_folding_a_number_changes_every_key_alike_in_vmap_and_map():
    tower, x = with_keys(Tower(nnx.Rngs(0)), KEY), jnp.ones((8, 64))
    numbers = jnp.arange(3)
    one = lambda n: fold(tower, n).drops(x)  # noqa: E731
    alone = np.stack([one(n) for n in range(3)])
    assert not np.array_equal(alone[0], alone[1]) and not np.array_equal(alone[0], np.asarray(tower.drops(x)))
    assert np.array_equal(jax.vmap(one)(numbers), alone)
    assert np.array_equal(jax.lax.map(one, numbers), alone)
    assert not keys_of(fold(Tower(nnx.Rngs(0)), 3))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dropout_keeps_the_mean_and_drops_at_its_rate(dtype):
    x = jnp.ones((200, 500), jnp.dtype(dtype))
    y = dropout(x, KEY, 0.1)
    assert y.dtype == x.dtype
    values = np.asarray(y.astype(jnp.float32))
    assert set(np.unique(values)) == {0, np.float32(jnp.asarray(1 / 0.9, jnp.dtype(dtype)))}
    # 100,000 draws: the standard deviation of the share is 0.001
    assert abs(np.mean(values == 0) - 0.1) < 0.004


def test_drop_path_drops_whole_samples_and_nothing_at_rate_zero():
    layer = DropPath()
    layer.key = DropoutKey(KEY)
    x = random(np.random.default_rng(0), 64, 3, 3, 2)
    y = np.asarray(layer(x, 0.5))
    gone = np.all(y == 0, axis=(1, 2, 3))
    assert 16 < gone.sum() < 48
    np.testing.assert_allclose(y[~gone], 2 * np.asarray(x)[~gone], rtol=1e-6)
    assert np.array_equal(layer(x, jnp.zeros(())), x)


def test_the_rates_are_those_of_the_reference():
    """SAM 2.1's files: drop_path_rate 0.1, linear from the first block to the last; dropout 0.1 in the memory attention."""
    hiera = abstract_model(MICRO).sam2.hiera
    rates = [rate for stage in hiera.stages for rate in stage.drop_path]
    np.testing.assert_allclose(rates, np.linspace(0, 0.1, sum(SAM2.stages)))
    assert (DROP_PATH, DROPOUT) == (0.1, 0.1)
    block = micro_model().sam2.memory_attention.blocks
    drops = (block.drop_self, block.drop_cross, block.drop_hidden, block.drop_mlp, block.self_attn.dropout, block.cross_attn.dropout)
    assert all(drop.rate == 0.1 for drop in drops)


def test_hiera_skips_branches_of_single_frames(rng):
    """Stochastic depth drops branches of some of twelve equal frames, and not the same branches of all."""
    images = jnp.broadcast_to(random(rng, 1, 32, 32, 3), (12, 32, 32, 3))
    encode = jax.jit(lambda model: model.sam2.encode(images).low)
    rest, trained = np.asarray(encode(micro_model())), np.asarray(encode(with_keys(micro_model(), KEY)))
    np.testing.assert_allclose(rest, rest[:1].repeat(12, axis=0), atol=1e-5)
    assert 2 < len(np.unique(trained.reshape(12, -1).round(3), axis=0)) < 12


def test_the_tracker_draws_anew_for_every_frame(rng, monkeypatch):
    """The frame's number is folded in: where the number 1 always is instead, frame 1 stays what it was and frame 2 does not."""
    model = with_keys(micro_model(), KEY)
    low = random(rng, 1, 2, 2, 16)
    empty = model.sam2.start(2, jnp.dtype("float32"), 8)
    state = dataclasses.replace(empty, memory=random(rng, *empty.memory.shape), memory_frame=jnp.zeros_like(empty.memory_frame).at[1:].set(-1))

    def conditioned(frame):
        return np.asarray(jax.jit(lambda sam2, state: sam2._remember(state, low))(model.sam2, dataclasses.replace(state, frame=jnp.asarray(frame))))

    frames = [conditioned(1), conditioned(2)]
    assert np.array_equal(conditioned(2), frames[1])
    monkeypatch.setattr(tracker, "fold", lambda module, frame: fold(module, 1))
    assert np.array_equal(conditioned(1), frames[0]) and not np.allclose(conditioned(2), frames[1], atol=1e-3)


def test_the_memory_attention_recomputed_draws_the_same(rng):
    """The gradient through ``jax.checkpoint``, which tracking puts around each frame, equals the gradient without it."""
    attention = with_keys(micro_model(), KEY).sam2.memory_attention
    low, memory, pos = random(rng, 1, 2, 2, 16), random(rng, 2, 14, 8), random(rng, 1, 14, 8)
    look = lambda memory: jnp.sum(attention(low, memory, pos, jnp.ones((1, 14), jnp.int32), 2) ** 2)  # noqa: E731
    plain, recomputed = jax.jit(jax.grad(look))(memory), jax.jit(jax.grad(jax.checkpoint(look)))(memory)
    np.testing.assert_allclose(recomputed, plain, rtol=1e-4, atol=1e-5)
    assert np.all(np.any(plain != 0, axis=(1, 2)))
