"""The optimizer against torch's formulas, written out in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from unipixel_jax.errors import UserError
from unipixel_jax.train.optim import MUON_RMS, OptimConfig, make_optimizer, schedule
from unipixel_jax.train.trainable import Group, groups

GROUPS = {
    "plain": Group("rest", True),
    "bias": Group("rest", False),
    "lora": Group("lora", True),
    "encoder": Group("sam_encoder", True),
    "decoder": Group("sam_decoder", False),
}
CONFIG = OptimConfig(learning_rate=1e-2, lora_lr=3e-2, sam_encoder_lr=1e-3, sam_decoder_lr=2e-3, weight_decay=0.1, warmup_ratio=0.25)
RATES = {"plain": 1e-2, "bias": 1e-2, "lora": 3e-2, "encoder": 1e-3, "decoder": 2e-3}


def torch_factor(step, total, warmup):
    """transformers' get_cosine_schedule_with_warmup."""
    if step < warmup:
        return step / max(1, warmup)
    return max(0.0, 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))))


def torch_steps(weights, gradients, config, total):
    """torch.nn.utils.clip_grad_norm_, then torch.optim.AdamW, then a step of the schedule, for every set of gradients."""
    weights = {k: w.astype(np.float64) for k, w in weights.items()}
    m, v = ({k: np.zeros_like(w) for k, w in weights.items()} for _ in range(2))
    warmup = math.ceil(total * config.warmup_ratio)
    for step, grads in enumerate(gradients):
        norm = math.sqrt(sum(float(np.sum(g.astype(np.float64) ** 2)) for g in grads.values()))
        share = 1.0 if config.clip_norm is None else min(1.0, config.clip_norm / (norm + 1e-6))
        for k, w in weights.items():
            g, lr = grads[k] * share, RATES[k] * torch_factor(step, total, warmup)
            w *= 1 - lr * (config.weight_decay if GROUPS[k].decays else 0.0)
            m[k] = config.b1 * m[k] + (1 - config.b1) * g
            v[k] = config.b2 * v[k] + (1 - config.b2) * g * g
            w -= lr / (1 - config.b1 ** (step + 1)) * m[k] / (np.sqrt(v[k]) / math.sqrt(1 - config.b2 ** (step + 1)) + config.eps)
    return weights


def our_steps(weights, gradients, config, total):
    optimizer = make_optimizer(config, GROUPS, total)
    weights = jax.tree.map(jnp.asarray, weights)
    state = optimizer.init(weights)

    @jax.jit
    def step(weights, state, grads):
        updates, state = optimizer.update(grads, state, weights)
        return optax.apply_updates(weights, updates), state

    for grads in gradients:
        weights, state = step(weights, state, jax.tree.map(jnp.asarray, grads))
    return weights, state


@pytest.fixture
def weights(rng):
    return {k: rng.normal(size=(3, 4)).astype(np.float32) for k in GROUPS}


def gradients(rng, scale, count=8):
    return [{k: (scale * rng.normal(size=(3, 4))).astype(np.float32) for k in GROUPS} for _ in range(count)]


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("scale", [0.01, 10.0], ids=["small", "large"])
def test_eight_steps_are_those_of_torch(rng, weights, scale, clip):
    config = OptimConfig(**(CONFIG.__dict__ | {"clip_norm": clip}))
    grads = gradients(rng, scale)
    ours, _ = our_steps(weights, grads, config, total=8)
    theirs = torch_steps(weights, grads, config, total=8)
    for k in GROUPS:
        change = theirs[k] - weights[k]
        assert np.linalg.norm(np.asarray(ours[k]) - weights[k] - change) < 1e-5 * np.linalg.norm(change) + 1e-6, k


def test_eps_stands_outside_the_root(weights):
    """A gradient as small as eps: torch divides by the root plus eps; a root over both would give another number."""
    config = OptimConfig(learning_rate=1.0, warmup_ratio=0.0, clip_norm=None, eps=1e-3)
    grads = [{k: np.full((3, 4), 1e-3, np.float32) for k in GROUPS}]
    ours, _ = our_steps(weights, grads, config, total=1)
    np.testing.assert_allclose(np.asarray(ours["plain"]) - weights["plain"], -0.5, rtol=1e-4)


def test_the_first_step_of_a_warm_up_only_fills_the_moments(rng, weights):
    ours, _ = our_steps(weights, gradients(rng, 1.0, 1), CONFIG, total=8)
    assert all(np.array_equal(ours[k], weights[k]) for k in GROUPS)


def test_there_is_one_state(weights):
    state = make_optimizer(CONFIG, GROUPS, 8).init(jax.tree.map(jnp.asarray, weights))
    # first and second moments, Adam's count and the schedule's
    assert len(jax.tree.leaves(state)) == 2 * len(GROUPS) + 2


HUGGING_FACE = {
    "linear": lambda step, total, warmup: max(0.0, (total - step) / max(1, total - warmup)),
    "constant": lambda step, total, warmup: 1.0,
    "inverse_sqrt": lambda step, total, warmup: 1 / math.sqrt((step + (warmup or 10_000) - warmup) / (warmup or 10_000)),
}
"""transformers 4.53's optimization.py after the warm-up: get_linear_, get_constant_ and get_inverse_sqrt_schedule_with_warmup."""


@pytest.mark.parametrize("name", HUGGING_FACE)
@pytest.mark.parametrize(("total", "ratio"), [(20, 0.25), (7, 0.0), (1000, 0.03)])
def test_other_schedules(name, total, ratio):
    rate = schedule(OptimConfig(learning_rate=2e-5, warmup_ratio=ratio, schedule=name), total)
    warmup = math.ceil(total * ratio)
    for step in range(0, total + 1, max(1, total // 50)):
        share = step / warmup if step < warmup else HUGGING_FACE[name](step, total, warmup)
        assert float(rate(step)) == pytest.approx(2e-5 * share, rel=1e-4, abs=1e-12)


OPTAX = {
    "nadamw": lambda decay, mask: optax.nadamw(1.0, weight_decay=decay, mask=mask),
    "amsgrad": lambda decay, mask: optax.chain(optax.amsgrad(1.0), optax.add_decayed_weights(-decay, mask)),
    "adabelief": lambda decay, mask: optax.chain(optax.adabelief(1.0, eps=1e-8), optax.add_decayed_weights(-decay, mask)),
    "adafactor": lambda decay, mask: optax.adafactor(1.0, multiply_by_parameter_scale=False, weight_decay_rate=decay, weight_decay_mask=mask),
    "lion": lambda decay, mask: optax.lion(1.0, b2=0.999, weight_decay=decay, mask=mask),
    "sgd": lambda decay, mask: optax.chain(optax.sgd(1.0, momentum=0.9), optax.add_decayed_weights(-decay, mask)),
}


@pytest.mark.parametrize("name", OPTAX)
def test_other_optimizers_are_those_of_optax(rng, name):
    """Three steps at constant rates: the change of every group is optax's own, times the group's rate."""
    weights = {k: rng.normal(size=(128, 130)).astype(np.float32) for k in GROUPS}  # large enough for Adafactor to take rows and columns
    config = OptimConfig(**(CONFIG.__dict__ | {"optimizer": name, "schedule": "constant", "warmup_ratio": 0.0, "clip_norm": None}))
    theirs, ours = OPTAX[name](config.weight_decay, {k: group.decays for k, group in GROUPS.items()}), make_optimizer(config, GROUPS, 3)
    states = [optimizer.init(weights) for optimizer in (theirs, ours)]
    for _ in range(3):
        grads = {k: rng.normal(size=(128, 130)).astype(np.float32) for k in GROUPS}
        with jax.numpy_dtype_promotion("standard"):
            wanted, states[0] = theirs.update(grads, states[0], weights)
        found, states[1] = ours.update(grads, states[1], weights)
        for k in GROUPS:
            np.testing.assert_allclose(found[k], wanted[k] * RATES[k], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(("total", "ratio"), [(20, 0.03), (20, 0.25), (7, 0.0), (1, 0.5), (1000, 0.03)])
def test_the_schedule(total, ratio):
    rate = schedule(OptimConfig(learning_rate=2e-5, warmup_ratio=ratio), total)
    warmup = math.ceil(total * ratio)
    for step in range(0, total + 1, max(1, total // 50)):
        assert float(rate(step)) == pytest.approx(2e-5 * torch_factor(step, total, warmup), rel=1e-4, abs=1e-12)
    if warmup:
        assert float(rate(jnp.asarray(0))) == 0 and float(rate(warmup)) == pytest.approx(2e-5)


def test_rates_fall_back_to_the_learning_rate():
    assert {OptimConfig(learning_rate=0.5).rate_of(group) for group in GROUPS.values()} == {0.5}
    assert OptimConfig(learning_rate=0.5, sam_encoder_lr=0.0).rate_of(GROUPS["encoder"]) == 0
    assert {k: CONFIG.rate_of(group) for k, group in GROUPS.items()} == RATES


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": -1.0},
        {"lora_lr": -1.0},
        {"weight_decay": -0.1},
        {"b2": 1.0},
        {"eps": 0.0},
        {"clip_norm": 0.0},
        {"warmup_ratio": 1.5},
        {"optimizer": "shampoo"},
        {"schedule": "sine"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_cannot_be_used_is_refused(change):
    with pytest.raises(UserError, match="expected"):
        OptimConfig(**change)


def test_a_training_without_steps_is_refused():
    with pytest.raises(UserError, match="0 steps"):
        make_optimizer(CONFIG, GROUPS, 0)
    with pytest.raises(UserError, match="at least 1"):
        schedule(CONFIG, 0)


MODEL = {
    "text": {"embed": {"weight": (9, 4)}, "blocks": {"q": {"weight": (3, 8, 6), "bias": (3, 8)}}},
    "sam2": {"neck": {"conv": {"weight": (8, 4, 3, 3)}, "dwconv": {"weight": (8, 1, 3, 3)}, "bias": (8,)}},
}


def test_muon_turns_every_matrix_and_nothing_else(rng):
    """After one step a layer's matrix has changed by an orthogonal one of Adam's size (five Newton-Schulz steps bring the singular values between 0.68 and
    1.21), each layer of a stack by itself; tables, biases and convolutions over one input by what Adam gives.
    """
    grads = jax.tree.map(lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32), MODEL, is_leaf=lambda a: isinstance(a, tuple))
    weights = jax.tree.map(jnp.zeros_like, grads)
    changes = {}
    for kind in ("adamw", "muon"):
        optimizer = make_optimizer(OptimConfig(learning_rate=1.0, warmup_ratio=0.0, clip_norm=None, optimizer=kind), groups(weights), 8)
        changes[kind], _ = jax.jit(optimizer.update)(grads, optimizer.init(weights), weights)
    turned = {"q": changes["muon"]["text"]["blocks"]["q"]["weight"], "conv": changes["muon"]["sam2"]["neck"]["conv"]["weight"].reshape(1, 8, 36)}
    for matrices in turned.values():
        for matrix in matrices:
            values = np.linalg.svd(matrix, compute_uv=False) / (MUON_RMS * math.sqrt(max(matrix.shape)))
            assert values.min() > 0.6 and values.max() < 1.3
    for path in (("text", "embed", "weight"), ("text", "blocks", "q", "bias"), ("sam2", "neck", "dwconv", "weight"), ("sam2", "neck", "bias")):
        ours, adams = changes["muon"], changes["adamw"]
        for part in path:
            ours, adams = ours[part], adams[part]
        np.testing.assert_array_equal(ours, adams)
