"""One softmax over several sets of keys, and gradients only of what is no constant, on every backend that runs here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_backends import HERE
from flax import nnx

from unipixel_jax.core.dropout import with_keys
from unipixel_jax.errors import UserError
from unipixel_jax.models.sam2 import memory
from unipixel_jax.models.sam2.memory import RopeAttention
from unipixel_jax.ops.attention import AttnMask, Keys, WeightDropout, attention, joint_attention, use_attention
from unipixel_jax.ops.rope import axial_rope

FORWARD, BACKWARD = 2e-6, 1e-5
"""Relative errors of the whole array in the Euclidean norm, those of tests/ops/test_attention.py."""


def relative(a, b):
    return np.linalg.norm(np.asarray(a) - np.asarray(b)) / np.linalg.norm(np.asarray(b))


@pytest.fixture
def arrays(rng):
    """Queries, two sets of keys and values, of which some rows see one set, both or none, and a cotangent."""

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    q, weight = draw(2, 40, 2, 24), draw(2, 40, 2, 40)
    k, v = [draw(2, n, 1, 24) for n in (150, 7)], [draw(2, n, 1, 40) for n in (150, 7)]
    q_segments = jnp.ones((2, 40), jnp.int32).at[0, 3].set(2).at[1, 5:9].set(3)
    kv_segments = [jnp.asarray(rng.integers(0, 2, (2, 150)), jnp.int32), jnp.asarray([[1, 1, 0, 2, 1, 0, 1]] * 2, jnp.int32)]
    return q, k, v, q_segments, kv_segments, weight


@pytest.mark.parametrize("backend", HERE)
def test_two_sets_are_one_longer_row(backend, arrays):
    q, k, v, q_segments, kv_segments, weight = arrays

    @jax.jit
    def together(q, k, v):
        mask = AttnMask(q_segments=q_segments, kv_segments=jnp.concatenate(kv_segments, axis=1))
        out, pull = jax.vjp(lambda q, k, v: attention(q, jnp.concatenate(k, 1), jnp.concatenate(v, 1), mask, implementation="xla"), q, k, v)
        return out, *pull(weight)

    @jax.jit
    def apart(q, k, v):
        masks = [AttnMask(q_segments=q_segments, kv_segments=one) for one in kv_segments]
        out, pull = jax.vjp(lambda q, k, v: joint_attention(q, [Keys(*one) for one in zip(k, v, masks, strict=True)], implementation=backend), q, k, v)
        return out, *pull(weight)

    (out, *gradients), (wanted, *wanted_gradients) = apart(q, k, v), together(q, k, v)
    assert relative(out, wanted) <= FORWARD
    assert not np.any(np.asarray(out)[1, 5:9]), "queries that see nothing"
    for ours, theirs in zip(jax.tree.leaves(gradients), jax.tree.leaves(wanted_gradients), strict=True):
        assert relative(ours, theirs) <= BACKWARD


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("dropped", [False, True])
def test_constants_change_no_gradient(backend, dropped, arrays):
    q, k, v, q_segments, kv_segments, weight = arrays
    mask = AttnMask(q_segments=q_segments, kv_segments=kv_segments[0])
    dropout = WeightDropout.draw(jax.random.key(1), 2, 1, 0.1) if dropped else None

    def of_values(q, k, v):
        return jnp.sum(weight * attention(q, k, v, mask, dropout=dropout, implementation=backend))

    stop = jax.lax.stop_gradient
    constant = jax.grad(lambda x: of_values(stop(x[0]), stop(x[1]), x[2]))
    d_q, d_k, d_v = jax.jit(constant)((q, k[0], v[0]))
    assert not np.any(d_q) and not np.any(d_k)
    assert relative(d_v, jax.jit(jax.grad(of_values, argnums=2))(q, k[0], v[0])) <= 1e-6


@pytest.mark.parametrize("backend", ["pallas_tpu", "pallas_gpu"])
def test_kernels_of_constants_are_not_run(backend, arrays):
    """Also where they are computed again inside a loop, as the memory attention's layers are. Rows are longer than those that have kernels of their own."""
    q, (k, v) = arrays[0], ([jnp.concatenate([a[0], a[0]], axis=1)] for a in arrays[1:3])
    stop = jax.lax.stop_gradient

    def loss(v, constant):
        def step(v, _):
            fixed = (stop(q + v.mean()), stop(k[0] + v.mean())) if constant else (q + v.mean(), k[0] + v.mean())
            return v + attention(*fixed, v, implementation=backend).mean(), None

        return jnp.sum(jax.lax.scan(jax.checkpoint(step), v, None, length=2)[0])

    kernels = {constant: str(jax.make_jaxpr(jax.grad(loss), static_argnums=1)(v[0], constant)) for constant in (True, False)}
    assert "attention_dv" in kernels[True] and "attention_dkv" not in kernels[True] and "attention_dq" not in kernels[True]
    assert "attention_dkv" in kernels[False] and "attention_dq" in kernels[False] and "attention_dv " not in kernels[False]


def test_cudnn_joins_nothing(arrays):
    q, k, v, *_ = arrays
    with pytest.raises(UserError, match="cudnn"):
        joint_attention(q, [Keys(*one) for one in zip(k, v, strict=True)], implementation="cudnn")


@pytest.mark.parametrize("dropped", [False, True])
def test_weighting_before_projecting_is_projecting_before_weighting(dropped, rng):
    """With a memory 8 wide and a model 32 wide, also where dropout keeps the weights of a query from adding up to 1."""
    layer = RopeAttention(32, 8, nnx.Rngs(0))
    layer.v.bias[...] = jnp.asarray(rng.normal(size=32), jnp.float32)
    layer = with_keys(layer, jax.random.key(0)) if dropped else layer
    x, keys, values = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 9, 32), (2, 20, 8), (2, 20, 8)))
    rope = tuple(jnp.asarray(a) for a in axial_rope(3, 32))
    mask = AttnMask(q_segments=jnp.ones((2, 9), jnp.int32), kv_segments=jnp.asarray(rng.integers(0, 2, (2, 20)), jnp.int32).at[:, 0].set(1))
    asked = []

    def remembered(q, sets, **how):
        asked.append((q, sets))
        return joint_attention(q, sets, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "joint_attention", remembered)
        ours = layer(x, keys, values, rope, 2, mask)
    ((q, sets),) = asked
    assert [one.v.shape[-1] for one in sets] == [8 + dropped] * 2
    projected = [one._replace(v=layer.v(one.v[..., :8])) for one in sets]
    assert relative(ours, layer.o(joint_attention(q, projected)[:, :, 0])) <= 1e-6


def test_a_cpu_projects_no_grid_that_nobody_sees(rng, monkeypatch):
    layer, rope = RopeAttention(32, 8, nnx.Rngs(0)), tuple(jnp.asarray(a) for a in axial_rope(3, 32))
    keys = jnp.asarray(rng.normal(size=(2, 27, 8)), jnp.float32)
    seen = np.repeat([[1, 0, 1], [0, 0, 1]], 9, axis=1)
    mask = AttnMask(q_segments=jnp.ones((2, 9), jnp.int32), kv_segments=jnp.asarray(seen, jnp.int32))
    monkeypatch.setattr(memory, "platform", lambda: "cpu")
    ours = layer._rotated_keys(keys, rope, mask)
    with use_attention("xla"):
        assert "scan" not in str(jax.make_jaxpr(lambda keys: layer._rotated_keys(keys, rope, mask))(keys)), "exports have no loops"
    monkeypatch.setattr(memory, "platform", lambda: "tpu")
    whole = layer._rotated_keys(keys, rope, mask)
    assert ours.shape == whole.shape == (2, 27, 1, 32)
    assert relative(ours, np.where(seen[..., None, None], whole, 0)) <= 1e-6
    assert np.all(np.asarray(whole)[seen == 0].any(axis=-1))
