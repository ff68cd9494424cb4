"""Attention over a mesh of eight pretended devices equals attention on one, in values and gradients, however it is sharded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unipixel_jax.ops.attention import AttentionSharding, AttnMask, WeightDropout, attention

B, T, N, K, H = 2, 64, 4, 2, 16


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((2, 2, 2), ("data", "tensor", "context"), axis_types=(jax.sharding.AxisType.Auto,) * 3)


@pytest.fixture
def arrays(rng):
    return tuple(jnp.asarray(rng.normal(size=(B, T, n, H)), jnp.float32) for n in (N, K, K, N))


def masks(rng):
    segments = jnp.asarray(np.sort(rng.integers(0, 3, (B, T))), jnp.int32)
    return {
        "all": AttnMask(),
        "causal": AttnMask(causal=True),
        "packed": AttnMask(causal=True, q_segments=segments, kv_segments=segments),
        "lengths": AttnMask(kv_lengths=jnp.asarray([5, 50], jnp.int32)),
        "causal lengths": AttnMask(causal=True, kv_lengths=jnp.asarray([0, 50], jnp.int32)),
    }


DIVISIONS = {
    "batch and heads": {"batch": ("data",), "heads": ("tensor",)},
    "everything, ring": {"batch": ("data",), "heads": ("tensor",), "sequence": "context"},
    "everything, gathered": {"batch": ("data",), "heads": ("tensor",), "sequence": "context", "keys": "gather"},
}


def grads(f, arrays):
    *qkv, weight = arrays
    value, pulled = jax.jit(jax.value_and_grad(lambda *a: jnp.sum(f(*a) * weight), (0, 1, 2)))(*qkv)
    return value, *pulled


@pytest.mark.parametrize("backend", ["xla", "xla_chunked"])
@pytest.mark.parametrize("division", DIVISIONS)
def test_divided_equals_whole(division, backend, mesh, arrays, rng):
    sharding = AttentionSharding(mesh, **DIVISIONS[division])
    for name, mask in masks(rng).items():
        ours = grads(lambda *a, m=mask: attention(*a, m, sharding=sharding, implementation=backend), arrays)
        whole = grads(lambda *a, m=mask: attention(*a, m, implementation="xla"), arrays)
        for a, b in zip(ours, whole, strict=True):
            assert np.linalg.norm(a - b) <= 5e-6 * np.linalg.norm(b), name


@pytest.mark.parametrize("backend", ["xla", "xla_chunked", "pallas_tpu", "pallas_gpu"])
def test_the_same_weights_are_dropped_however_divided(backend, mesh, arrays, rng):
    sharding = AttentionSharding(mesh, batch=("data",), heads=("tensor",))
    dropout, mask = WeightDropout.draw(jax.random.key(3), B, K, 0.2), masks(rng)["packed"]
    ours = grads(lambda *a: attention(*a, mask, sharding=sharding, dropout=dropout, implementation=backend), arrays)
    whole = grads(lambda *a: attention(*a, mask, dropout=dropout, implementation="xla"), arrays)
    for a, b in zip(ours, whole, strict=True):
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b)


@pytest.mark.parametrize("backend", ["pallas_tpu", "pallas_gpu"])
@pytest.mark.parametrize("keys", ["ring", "gather"])
def test_the_kernels_can_be_divided(backend, keys, mesh, arrays, rng):
    sharding = AttentionSharding(mesh, ("data",), ("tensor",), "context", keys)
    mask = masks(rng)["packed"]
    ours = grads(lambda *a: attention(*a, mask, sharding=sharding, implementation=backend), arrays)
    whole = grads(lambda *a: attention(*a, mask, implementation="xla"), arrays)
    for a, b in zip(ours, whole, strict=True):
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b)


def test_a_ring_of_eight_never_holds_all_keys(arrays):
    """It passes keys from device to device and gathers none."""
    ring = jax.make_mesh((8,), ("context",), axis_types=(jax.sharding.AxisType.Auto,))
    *qkv, _ = arrays
    programs = {}
    for keys in ("ring", "gather"):
        sharding = AttentionSharding(ring, sequence="context", keys=keys)
        programs[keys] = jax.jit(lambda *a, s=sharding: attention(*a, AttnMask(causal=True), sharding=s)).lower(*qkv).as_text()
    assert "collective_permute" in programs["ring"] and "all_gather" not in programs["ring"]
    assert "all_gather" in programs["gather"] and "collective_permute" not in programs["gather"]


def test_what_does_not_divide_is_refused(mesh, arrays):
    q, k, v, _ = arrays
    with pytest.raises(ValueError, match=r"length of q is 63, which the 2 devices of mesh axes \('context',\) do not divide"):
        attention(q[:, :63], k, v, sharding=AttentionSharding(mesh, sequence="context"))
    with pytest.raises(ValueError, match=r"number of key heads is 1, which the 2 devices of mesh axes \('tensor',\)"):
        attention(q, k[:, :, :1], v[:, :, :1], sharding=AttentionSharding(mesh, heads=("tensor",)))
    with pytest.raises(ValueError, match=r"dropped by their place in the whole row, which mesh axis 'context' shards"):
        attention(q, k, v, sharding=AttentionSharding(mesh, sequence="context"), dropout=WeightDropout(jnp.ones((B, K), jnp.int32), 0.1))
    with pytest.raises(ValueError, match=r"as many queries as keys, got q \(2, 32, 4, 16\) and k \(2, 64, 2, 16\)"):
        attention(q[:, :32], k, v, AttnMask(causal=True), sharding=AttentionSharding(mesh, sequence="context"))
