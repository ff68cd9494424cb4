"""One battery for every backend of attention: values and gradients against float64 numpy, masks, empty rows, refusals."""

import itertools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unipixel_jax.ops.attention import BACKENDS, AttnMask, attention, xla_chunked

backends = pytest.mark.parametrize("backend", sorted(BACKENDS))


@dataclass(frozen=True)
class Shape:
    batch: int = 2
    queries: int = 6
    keys: int = 6
    heads: int = 4
    key_heads: int = 4
    size: int = 8
    value_size: int = 8


SHAPES = {
    "self": Shape(),
    "grouped": Shape(key_heads=2),
    "one key head": Shape(key_heads=1),
    "cross": Shape(queries=3, keys=11),
    "wide values": Shape(queries=5, keys=7, value_size=3),
    "one query": Shape(queries=1, keys=9, key_heads=2),
    "uneven blocks": Shape(batch=1, queries=37, keys=53, heads=2, key_heads=1),
}


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks so small that short rows need several of them."""
    monkeypatch.setattr(xla_chunked, "Q_BLOCK", 16)
    monkeypatch.setattr(xla_chunked, "KV_BLOCK", 24)


pytestmark = pytest.mark.usefixtures("small_blocks")


def inputs(shape, rng):
    q = rng.normal(size=(shape.batch, shape.queries, shape.heads, shape.size))
    k = rng.normal(size=(shape.batch, shape.keys, shape.key_heads, shape.size))
    v = rng.normal(size=(shape.batch, shape.keys, shape.key_heads, shape.value_size))
    return tuple(a.astype(np.float32) for a in (q, k, v))


def masks(shape, rng):
    """Name -> mask, for the masks that make sense for the shape."""
    some = {"none": None}
    if shape.queries == shape.keys or shape.queries > 30:
        some["causal"] = AttnMask(causal=True)
    q = rng.integers(0, 3, (shape.batch, shape.queries)).astype(np.int32)
    kv = rng.integers(0, 3, (shape.batch, shape.keys)).astype(np.int32)
    q[0, -1] = 9  # a segment that no key has: this query sees nothing
    some["segments"] = AttnMask(q_segments=jnp.asarray(q), kv_segments=jnp.asarray(kv))
    if "causal" in some:
        some["causal segments"] = AttnMask(causal=True, q_segments=jnp.asarray(q), kv_segments=jnp.asarray(kv))
    return some


def visible(mask, shape):
    """[B, T, S] booleans, one pair at a time."""
    out = np.ones((shape.batch, shape.queries, shape.keys), bool)
    for b, t, s in itertools.product(range(shape.batch), range(shape.queries), range(shape.keys)):
        if mask is not None and mask.causal and s > t:
            out[b, t, s] = False
        if mask is not None and mask.q_segments is not None and mask.kv_segments is not None:
            q, kv = int(mask.q_segments[b, t]), int(mask.kv_segments[b, s])
            out[b, t, s] &= q == kv and kv != 0
    return out


def reference(q, k, v, seen, scale):
    """Attention in float64; every query head with its own copy of its key head."""
    group = q.shape[2] // k.shape[2]
    k, v = (np.repeat(a.astype(np.float64), group, axis=2) for a in (k, v))
    scores = np.where(seen[:, None], np.einsum("btnh,bsnh->bnts", q.astype(np.float64), k) * scale, -np.inf)
    best = scores.max(-1, keepdims=True)
    p = np.exp(scores - np.where(np.isfinite(best), best, 0))
    total = p.sum(-1, keepdims=True)
    return np.einsum("bnts,bsnv->btnv", p / np.where(total == 0, 1, total), v)


@backends
@pytest.mark.parametrize("name", SHAPES)
def test_values(backend, name, rng):
    shape = SHAPES[name]
    q, k, v = inputs(shape, rng)
    for label, mask in masks(shape, rng).items():
        ours = attention(*(jnp.asarray(a) for a in (q, k, v)), mask, implementation=backend)
        seen = visible(mask, shape)
        expected = reference(q, k, v, seen, shape.size**-0.5)
        np.testing.assert_allclose(ours, expected, atol=2e-6, err_msg=label)
        blind = ~seen.any(-1)
        assert label in ("none", "causal") or blind.any()
        assert np.all(np.asarray(ours)[blind] == 0), label


@backends
@pytest.mark.parametrize("name", ["grouped", "uneven blocks"])
def test_gradients(backend, name, rng):
    """Against the gradient of the softmax written out by hand, in float64."""
    shape = SHAPES[name]
    q, k, v = inputs(shape, rng)
    for label, mask in masks(shape, rng).items():
        seen = visible(mask, shape)
        weight = rng.normal(size=(*q.shape[:3], shape.value_size)).astype(np.float32)

        def loss(q, k, v, mask=mask, weight=weight):
            return jnp.sum(attention(q, k, v, mask, implementation=backend) * weight)

        ours = jax.grad(loss, argnums=(0, 1, 2))(*(jnp.asarray(a) for a in (q, k, v)))
        for grad, expected in zip(ours, reference_gradients(q, k, v, seen, shape.size**-0.5, weight), strict=True):
            np.testing.assert_allclose(grad, expected, atol=5e-6, err_msg=label)
        assert np.all(np.asarray(ours[0])[~seen.any(-1)] == 0), label
        unseen = ~seen.any(1)
        assert np.all(np.asarray(ours[1])[unseen] == 0) and np.all(np.asarray(ours[2])[unseen] == 0), label


def reference_gradients(q, k, v, seen, scale, d_out):
    group, key_heads = q.shape[2] // k.shape[2], k.shape[2]
    kk, vv = (np.repeat(a.astype(np.float64), group, axis=2) for a in (k, v))
    scores = np.where(seen[:, None], np.einsum("btnh,bsnh->bnts", q.astype(np.float64), kk) * scale, -np.inf)
    best = scores.max(-1, keepdims=True)
    p = np.exp(scores - np.where(np.isfinite(best), best, 0))
    p = p / np.where(p.sum(-1, keepdims=True) == 0, 1, p.sum(-1, keepdims=True))
    d_p = np.einsum("btnv,bsnv->bnts", d_out, vv)
    d_scores = p * (d_p - (d_p * p).sum(-1, keepdims=True)) * scale
    d_q = np.einsum("bnts,bsnh->btnh", d_scores, kk)

    def per_key_head(a):
        return a.reshape(*a.shape[:2], key_heads, group, -1).sum(3)

    return d_q, per_key_head(np.einsum("bnts,btnh->bsnh", d_scores, q)), per_key_head(np.einsum("bnts,btnv->bsnv", p, d_out))


@backends
def test_a_batch_with_nothing_to_see(backend, rng):
    shape = SHAPES["self"]
    q, k, v = (jnp.asarray(a) for a in inputs(shape, rng))
    mask = AttnMask(q_segments=jnp.zeros((2, 6), jnp.int32), kv_segments=jnp.zeros((2, 6), jnp.int32))
    value, grads = jax.value_and_grad(lambda *a: jnp.sum(attention(*a, mask, implementation=backend)), argnums=(0, 1, 2))(q, k, v)
    assert value == 0
    assert all(np.all(np.asarray(g) == 0) for g in grads)


@backends
def test_large_scores_do_not_overflow(backend, rng):
    shape = SHAPES["cross"]
    q, k, v = inputs(shape, rng)
    ours = attention(*(jnp.asarray(a) for a in (300 * q, k, v)), implementation=backend)
    np.testing.assert_allclose(ours, reference(300 * q, k, v, visible(None, shape), shape.size**-0.5), atol=2e-4)


@backends
def test_bfloat16_inputs_have_a_float32_softmax(backend, rng):
    shape = SHAPES["grouped"]
    q, k, v = (jnp.asarray(a, jnp.bfloat16) for a in inputs(shape, rng))
    ours = attention(q, k, v, implementation=backend)
    assert ours.dtype == jnp.bfloat16
    expected = reference(*(np.asarray(a, np.float32) for a in (q, k, v)), visible(None, shape), shape.size**-0.5)
    # probabilities and the result are each rounded to 8 bits; nothing worse
    np.testing.assert_allclose(np.asarray(ours, np.float32), expected, atol=2**-7)


@backends
def test_scale_and_determinism(backend, rng):
    shape = SHAPES["self"]
    q, k, v = inputs(shape, rng)
    args = tuple(jnp.asarray(a) for a in (q, k, v))
    first = attention(*args, scale=0.1, implementation=backend)
    np.testing.assert_allclose(first, reference(q, k, v, visible(None, shape), 0.1), atol=2e-6)
    np.testing.assert_array_equal(first, attention(*args, scale=0.1, implementation=backend))


def test_padding_keys_change_nothing(rng):
    """Whatever lies in hidden slots, NaN aside, never reaches a visible query."""
    q, k, v = inputs(SHAPES["cross"], rng)
    segments = np.ones((2, 11), np.int32)
    segments[:, 8:] = 0
    mask = AttnMask(q_segments=jnp.ones((2, 3), jnp.int32), kv_segments=jnp.asarray(segments))
    for backend in BACKENDS:
        full = attention(*(jnp.asarray(a) for a in (q, k, v)), mask, implementation=backend)
        k2, v2 = k.copy(), v.copy()
        k2[:, 8:], v2[:, 8:] = 1e4, -1e6
        np.testing.assert_array_equal(full, attention(jnp.asarray(q), jnp.asarray(k2), jnp.asarray(v2), mask, implementation=backend))
        np.testing.assert_allclose(full, attention(*(jnp.asarray(a) for a in (q, k[:, :8], v[:, :8])), implementation=backend), atol=1e-6)


REFUSED = {
    "3 dimensions": ({"q": (2, 6, 8)}, {}, "4 dimensions"),
    "batch": ({"q": (3, 6, 4, 8)}, {}, "agree in batch and head size"),
    "head size": ({"q": (2, 6, 4, 16)}, {}, "agree in batch and head size"),
    "key length": ({"v": (2, 7, 4, 8)}, {}, "agree in batch, length and heads"),
    "heads": ({"k": (2, 6, 3, 8), "v": (2, 6, 3, 8)}, {}, "do not divide"),
    "one segment table": ({}, {"mask": AttnMask(q_segments=jnp.ones((2, 6), jnp.int32))}, "together"),
    "segment shape": ({}, {"mask": AttnMask(q_segments=jnp.ones((2, 6), jnp.int32), kv_segments=jnp.ones((2, 5), jnp.int32))}, r"kv_segments .*\(2, 6\)"),
    "name": ({}, {"implementation": "cuda"}, "'cuda', expected one of xla, xla_chunked"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused(name):
    shapes, options, message = REFUSED[name]
    q, k, v = (jnp.zeros(shapes.get(n, (2, 6, 4, 8)), jnp.float32) for n in "qkv")
    with pytest.raises(ValueError, match=message):
        attention(q, k, v, **options)


def test_mixed_dtypes_are_refused():
    q = jnp.zeros((1, 2, 1, 4), jnp.float32)
    with pytest.raises(ValueError, match="one dtype, got float32, bfloat16, float32"):
        attention(q, q.astype(jnp.bfloat16), q)
