"""One battery for every backend of attention that runs here: values and gradients against float64, masks, empty rows, transformations, refusals.

On a CPU, Pallas kernels run in interpret mode. `pytest -m slow` draws 300 cases for each backend, the usual run some dozens.
"""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_backends import HERE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unipixel_jax.errors import UserError
from unipixel_jax.ops.attention import BACKENDS, AttnMask, WeightDropout, attention, use_attention, xla_chunked
from unipixel_jax.ops.attention.choice import DENSE_BELOW, WINDOWS_FROM, choose
from unipixel_jax.ops.attention.spec import Spec
from unipixel_jax.ops.attention.windows import LONGEST

backends = pytest.mark.parametrize("backend", HERE)


@dataclass(frozen=True)
class Shape:
    batch: int = 2
    queries: int = 6
    keys: int = 6
    heads: int = 4
    key_heads: int = 4
    size: int = 16
    value_size: int = 16


SHAPES = {
    "self": Shape(),
    "grouped": Shape(key_heads=2),
    "cross": Shape(queries=3, keys=11),
    "wide keys": Shape(queries=5, keys=7, size=32, value_size=8),
    "one query": Shape(queries=1, keys=139, key_heads=2, size=128, value_size=128),
    "several blocks": Shape(batch=1, queries=300, keys=300, heads=2, key_heads=1, size=56, value_size=56),
    "more keys": Shape(batch=1, queries=37, keys=553, heads=1, key_heads=1, size=256, value_size=64),
    "more queries": Shape(batch=1, queries=290, keys=20, heads=2, key_heads=2, size=72, value_size=72),
    "one head": Shape(batch=3, queries=65, keys=65, heads=6, key_heads=1, size=80, value_size=80),
    "window": Shape(batch=4, queries=64, keys=64, heads=1, key_heads=1, size=96, value_size=96),
    "long head": Shape(batch=1, queries=129, keys=257, heads=1, key_heads=1, size=256, value_size=256),
    "even": Shape(batch=1, queries=256, keys=256, heads=2, key_heads=1, size=64, value_size=64),
}
FORWARD = {"float32": 2e-6, "bfloat16": 1e-2}
BACKWARD = {"float32": 1e-5, "bfloat16": 2e-2}
"""Relative errors (of the whole array, in the Euclidean norm)."""
CANCELLED = 0.1
"""A gradient shorter than this share of what its terms would add up to with random signs is the rest of a cancellation, of which float32 leaves little
right, in `xla` as in the others; its error is taken relative to that share of the terms."""


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks so small that short rows need several of them."""
    monkeypatch.setattr(xla_chunked, "Q_BLOCK", 16)
    monkeypatch.setattr(xla_chunked, "KV_BLOCK", 24)
    monkeypatch.setattr(xla_chunked, "ALIKE", 40)


@dataclass(frozen=True)
class Case:
    """Arrays of one call, who sees whom [B, T, S] and what each weight is multiplied by [B, N, T, S], written out."""

    arrays: tuple[np.ndarray, ...]
    mask: AttnMask
    seen: np.ndarray
    scale: float
    dropout: WeightDropout | None
    factors: np.ndarray


def factors(seeds, rate, heads, queries, keys):
    """Return the factors by which dropout multiplies the weights [B, N, T, S], computed in 32-bit arithmetic as its documentation describes."""

    def mixed(x):
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
        return x ^ (x >> 16)

    seeds = seeds.astype(np.uint32).astype(np.uint64)
    rows = np.arange(heads // seeds.shape[1] * queries, dtype=np.uint64)
    rows = mixed((rows + seeds[..., None]) & 0xFFFFFFFF)
    drawn = mixed((rows[..., None] + mixed(np.arange(keys, dtype=np.uint64))) & 0xFFFFFFFF) >> 8
    return np.where(drawn >= round(rate * 2**24), 1 / (1 - rate), 0).reshape(len(seeds), heads, queries, keys)


def draw(shape, rng, causal=False, rule="all", dtype="float32", rate=None):
    """A random case. ``rule``: "all", "segments" (some queries and keys are padding, some queries see nothing), "lengths", or "both". ``rate``: of dropout."""
    q = rng.normal(size=(shape.batch, shape.queries, shape.heads, shape.size))
    k = rng.normal(size=(shape.batch, shape.keys, shape.key_heads, shape.size))
    v = rng.normal(size=(shape.batch, shape.keys, shape.key_heads, shape.value_size))
    weight = rng.normal(size=(*q.shape[:3], shape.value_size))
    arrays = tuple(np.asarray(jnp.asarray(a, dtype)) for a in (q, k, v, weight))
    seen = np.ones((shape.batch, shape.queries, shape.keys), bool)
    if causal:
        seen &= np.tril(np.ones(seen.shape[1:], bool))
    rules = {}
    if rule in ("segments", "both"):
        kinds = rng.integers(1, 4)
        sorted_rows = rng.random() < 0.5  # packed prompts have their segments in a row, memory slots do not
        q_segments, kv_segments = (rng.integers(0, kinds + 1, (shape.batch, n)) for n in (shape.queries, shape.keys))
        if sorted_rows:
            q_segments, kv_segments = np.sort(q_segments), np.sort(kv_segments)
        q_segments[0, -1] = 9  # a segment that no key has
        rules |= {"q_segments": q_segments, "kv_segments": kv_segments}
        seen &= (q_segments[:, :, None] == kv_segments[:, None]) & (kv_segments != 0)[:, None]
    if rule in ("lengths", "both"):
        lengths = rng.integers(0, shape.keys + 1, shape.batch)
        rules["kv_lengths"] = lengths
        seen &= (np.arange(shape.keys) < lengths[:, None])[:, None]
    mask = AttnMask(causal, **{name: jnp.asarray(a, jnp.int32) for name, a in rules.items()})
    scale, dropout, factor = (2.0 if causal else 0.5) * shape.size**-0.5, None, np.ones((1, 1, 1, 1))
    if rate is not None:
        seeds = rng.integers(-(2**31), 2**31, (shape.batch, shape.key_heads))
        dropout, factor = WeightDropout(jnp.asarray(seeds, jnp.int32), rate), factors(seeds, rate, shape.heads, shape.queries, shape.keys)
    return Case(arrays, mask, seen, scale, dropout, factor)


def expected(case):
    """In float64, with the softmax's derivative by hand: attention and the gradients of its product with the weight, each with the least length that its
    error is measured by.
    """
    q, k, v, weight = (a.astype(np.float64) for a in case.arrays)
    group = q.shape[2] // k.shape[2]
    kk, vv = (np.repeat(a, group, axis=2) for a in (k, v))
    scores = np.where(case.seen[:, None], np.einsum("btnh,bsnh->bnts", q, kk) * case.scale, -np.inf)
    best = scores.max(-1, keepdims=True)
    p = np.exp(scores - np.where(np.isfinite(best), best, 0))
    p = p / np.where(p.sum(-1, keepdims=True) == 0, 1, p.sum(-1, keepdims=True))
    d_p = np.einsum("btnv,bsnv->bnts", weight, vv) * case.factors
    mean = (d_p * p).sum(-1, keepdims=True)
    d_scores, terms = p * (d_p - mean) * case.scale, p * (np.abs(d_p) + np.abs(mean)) * case.scale

    def per_key_head(a):
        return a.reshape(*a.shape[:2], k.shape[2], group, -1).sum(3)

    d_q, d_q_terms = np.einsum("bnts,bsnh->btnh", d_scores, kk), np.einsum("bnts,bsnh->btnh", terms**2, kk**2)
    d_k, d_k_terms = (per_key_head(np.einsum("bnts,btnh->bsnh", *pair)) for pair in ((d_scores, q), (terms**2, q**2)))
    d_v = per_key_head(np.einsum("bnts,btnv->bsnv", p * case.factors, weight))
    least = [CANCELLED * np.sqrt(squares.sum()) for squares in (d_q_terms, d_k_terms)]
    return (np.einsum("bnts,bsnv->btnv", p * case.factors, vv), 0), (d_q, least[0]), (d_k, least[1]), (d_v, 0)


@partial(jax.jit, static_argnames=("scale", "backend"))
def run(q, k, v, weight, mask, scale, backend, dropout=None):
    """The result and the gradients; one program for each backend, shape, kind of mask, dtype and scale."""
    out, pull = jax.vjp(lambda *a: attention(*a, mask, scale=scale, dropout=dropout, implementation=backend), q, k, v)
    return out, *pull(weight)


def relative(ours, theirs, least):
    """The error's length by that of the truth; of an error of zero, zero."""
    error = np.linalg.norm(np.asarray(ours, np.float64) - theirs)
    return error and error / max(np.linalg.norm(theirs), least)


def check(backend, case, dtype="float32"):
    """The result and the gradients are within bounds, and exactly zero where nothing is seen."""
    ours = run(*(jnp.asarray(a) for a in case.arrays), case.mask, case.scale, backend, case.dropout)
    theirs = expected(case)
    assert all(a.dtype == dtype for a in ours)
    blind, unseen = ~case.seen.any(2), ~case.seen.any(1)
    for a in ours[:2]:
        assert np.all(np.asarray(a)[blind] == 0)
    for a in ours[2:]:
        assert np.all(np.asarray(a)[unseen] == 0)
    errors = [relative(a, *b) for a, b in zip(ours, theirs, strict=True)]
    assert errors[0] <= FORWARD[dtype]
    assert max(errors[1:]) <= BACKWARD[dtype]


cases = st.builds(
    lambda name, seed, causal, *others: (name, seed, causal and SHAPES[name].queries == SHAPES[name].keys, *others),
    st.sampled_from(sorted(SHAPES)),
    st.integers(0, 2**32 - 1),
    st.booleans(),
    st.sampled_from(("all", "segments", "lengths", "both")),
    st.sampled_from((None, 0.1)),
)
quiet = partial(settings, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture], deadline=None)


def check_random(backend, drawn, dtype):
    name, seed, causal, rule, rate = drawn
    check(backend, draw(SHAPES[name], np.random.default_rng(seed), causal, rule, dtype, rate), dtype)


@backends
@quiet(max_examples=10)
@given(drawn=cases)
def test_random_cases(backend, drawn):
    check_random(backend, drawn, "float32")


@backends
@quiet(max_examples=5)
@given(drawn=cases)
def test_random_cases_in_bfloat16(backend, drawn):
    check_random(backend, drawn, "bfloat16")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@backends
@quiet(max_examples=300)
@given(drawn=cases)
def test_300_random_cases(backend, dtype, drawn):
    check_random(backend, drawn, dtype)


@backends
@pytest.mark.parametrize("name", ["several blocks", "more keys"])
def test_every_kind_of_mask_over_several_blocks(backend, name, rng):
    shape = SHAPES[name]
    for causal in {False, shape.queries == shape.keys}:
        for rule, rate in (("all", None), ("both", None), ("all", 0.1), ("both", 0.5)):
            check(backend, draw(shape, rng, causal, rule, rate=rate))


@backends
@pytest.mark.parametrize("name, run", [("several blocks", 60), ("one head", 13)])
def test_runs_of_keys_that_all_see_or_none_does(backend, name, run, rng):
    shape = SHAPES[name]
    plain = draw(shape, rng)
    seen = np.repeat(rng.random((shape.batch, shape.keys // run)) < 0.6, run, axis=1)
    seen[0, :run] = True
    q_segments, kv_segments = jnp.ones((shape.batch, shape.queries), jnp.int32), jnp.asarray(seen, jnp.int32)
    mask = AttnMask(q_segments=q_segments, kv_segments=kv_segments, run=run)
    check(backend, replace(plain, mask=mask, seen=np.broadcast_to(seen[:, None], plain.seen.shape)))


def test_weights_are_dropped_at_the_rate_and_independently(rng):
    """The share of dropped weights is right among 2.6 million, and no row, column or pair of heads is like another."""
    kept = factors(rng.integers(-(2**31), 2**31, (2, 2)), 0.1, 4, 400, 800) > 0
    assert abs(kept.mean() - 0.9) < 6 * 0.3 / np.sqrt(kept.size)
    flat = (kept - 0.9).reshape(8, 400, 800) / 0.3
    for pairs in (flat[:, 1:] * flat[:, :-1], flat[:, :, 1:] * flat[:, :, :-1], flat[1:] * flat[:-1], flat[:, 7:] * flat[:, :-7]):
        assert abs(pairs.mean()) < 6 / np.sqrt(pairs.size)
    for axis in (1, 2):  # the shares of rows and of columns vary as those of a fair draw
        count = flat.shape[axis]
        assert abs(np.mean(flat.mean(axis=axis) ** 2) * count - 1) < 0.15


@backends
def test_a_batch_with_nothing_to_see(backend, rng):
    case = draw(SHAPES["self"], rng)
    nothing = AttnMask(q_segments=jnp.zeros((2, 6), jnp.int32), kv_segments=jnp.zeros((2, 6), jnp.int32))
    for a in run(*case.arrays, nothing, case.scale, backend):
        assert np.all(np.asarray(a) == 0)


@backends
def test_large_scores_do_not_overflow(backend, rng):
    case = draw(SHAPES["cross"], rng)
    q, *others = case.arrays
    large = replace(case, arrays=(300 * q, *others))
    ours = run(*large.arrays, large.mask, large.scale, backend)
    assert relative(ours[0], *expected(large)[0]) < 1e-4


@backends
def test_determinism_and_the_default_scale(backend, rng):
    case = draw(SHAPES["several blocks"], rng, causal=True, rule="segments")
    first, second = (run(*case.arrays, case.mask, case.scale, backend) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
    q, k, v, _ = (jnp.asarray(a) for a in case.arrays)
    default = attention(q, k, v, case.mask, implementation=backend)
    np.testing.assert_allclose(default, attention(q, k, v, case.mask, scale=q.shape[-1] ** -0.5, implementation=backend))


@backends
def test_what_lies_in_hidden_slots_never_matters(backend, rng):
    case = draw(SHAPES["cross"], rng)
    q, k, v, _ = case.arrays
    mask = AttnMask(kv_lengths=jnp.full(2, 8, jnp.int32))
    full = attention(*(jnp.asarray(a) for a in (q, k, v)), mask, implementation=backend)
    k2, v2 = k.copy(), v.copy()
    k2[:, 8:], v2[:, 8:] = 1e4, -1e6
    np.testing.assert_array_equal(full, attention(*(jnp.asarray(a) for a in (q, k2, v2)), mask, implementation=backend))
    np.testing.assert_allclose(full, attention(*(jnp.asarray(a) for a in (q, k[:, :8], v[:, :8])), implementation=backend), atol=1e-6)


@backends
def test_under_vmap_and_checkpoint(backend, rng):
    case = draw(SHAPES["grouped"], rng, causal=True, rule="segments")
    q, k, v, weight = (jnp.asarray(a) for a in case.arrays)

    def loss(q, k, v, mask):
        return jnp.sum(attention(q, k, v, mask, implementation=backend) * weight[: q.shape[0]])

    plain = jax.grad(loss, (0, 1, 2))(q, k, v, case.mask)
    again = jax.jit(jax.grad(jax.checkpoint(loss), (0, 1, 2)))(q, k, v, case.mask)
    one_by_one = jax.vmap(lambda q, k, v, m, w: jnp.sum(attention(q[None], k[None], v[None], m, implementation=backend) * w[None]), in_axes=0)
    rows = jax.tree.map(lambda a: a[:, None], case.mask)
    mapped = jax.jit(jax.grad(lambda *a: jnp.sum(one_by_one(*a, rows, weight)), (0, 1, 2)))(q, k, v)
    for a, b, c in zip(plain, again, mapped, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
        np.testing.assert_allclose(a, c, atol=1e-6)


@backends
def test_the_context_chooses_and_keeps_programs_apart(backend, rng):
    case = draw(SHAPES["grouped"], rng)
    q, k, v, _ = (jnp.asarray(a) for a in case.arrays)
    traced = []

    @jax.jit
    def call(q, k, v):
        traced.append(use_attention.value)
        return attention(q, k, v)

    plain = call(q, k, v)
    with use_attention(backend):
        np.testing.assert_allclose(call(q, k, v), plain, atol=2e-6)
    call(q, k, v)
    assert traced == [None, backend]


WORK = {
    # queries, keys, heads, key heads, head size, value size, segments: on a CPU, a TPU, a GPU
    "prefill": ((8192, 8192, 16, 2, 128, 128, False), "xla_chunked", "pallas_tpu", "cudnn"),
    "packed training": ((8192, 8192, 16, 2, 128, 128, True), "xla_chunked", "pallas_tpu", "pallas_gpu"),
    "decode": ((1, 4096, 16, 2, 128, 128, True), "xla", "xla", "xla"),
    "vision window": ((64, 64, 16, 16, 80, 80, True), "xla", "pallas_tpu", "pallas_gpu"),
    "vision frame": ((2048, 2048, 16, 16, 80, 80, True), "xla_chunked", "pallas_tpu", "pallas_gpu"),
    "SAM memory": ((2304, 16192, 1, 1, 256, 64, True), "xla_chunked", "pallas_tpu", "pallas_gpu"),
    "Hiera window": ((196, 196, 8, 8, 56, 56, False), "xla", "pallas_tpu", "pallas_gpu"),
    "small window": ((49, 49, 16, 16, 56, 56, False), "xla", "xla", "xla"),
    "Hiera map": ((2304, 2304, 8, 8, 56, 56, False), "xla_chunked", "pallas_tpu", "cudnn"),
    "mask decoder": ((9, 2304, 8, 8, 16, 16, False), "xla", "xla", "xla"),
}

CAUSAL = ("prefill", "packed training")


@pytest.mark.parametrize("name", WORK)
def test_what_is_chosen_for_the_models_work(name):
    (queries, keys, heads, key_heads, size, value_size, segmented), *names = WORK[name]
    for platform, want in zip(("cpu", "tpu", "gpu"), names, strict=True):
        spec = Spec(1, queries, keys, heads, key_heads, size, value_size, jnp.dtype(jnp.bfloat16), name in CAUSAL, segmented, platform)
        assert choose(spec) == want, platform
    window = min(queries, keys) >= WINDOWS_FROM and max(queries, keys) <= LONGEST
    assert (queries * keys < DENSE_BELOW and not window) == (names[1] == "xla")


REFUSED = {
    "3 dimensions": ({"q": (2, 6, 8)}, {}, r"4 dimensions .* got \(2, 6, 8\)"),
    "batch": ({"q": (3, 6, 4, 8)}, {}, r"q \(3, 6, 4, 8\) and k \(2, 6, 4, 8\) must agree in batch and head size"),
    "head size": ({"q": (2, 6, 4, 16)}, {}, "agree in batch and head size"),
    "key length": ({"v": (2, 7, 4, 8)}, {}, "agree in batch, length and heads"),
    "heads": ({"k": (2, 6, 3, 8), "v": (2, 6, 3, 8)}, {}, "q has 4 heads, which k's 3 do not divide"),
    "one segment table": ({}, {"mask": AttnMask(q_segments=jnp.ones((2, 6), jnp.int32))}, "together"),
    "segment shape": ({}, {"mask": AttnMask(q_segments=jnp.ones((2, 6), jnp.int32), kv_segments=jnp.ones((2, 5), jnp.int32))}, r"kv_segments .*\(2, 6\)"),
    "lengths": ({}, {"mask": AttnMask(kv_lengths=jnp.ones((2, 6), jnp.int32))}, r"kv_lengths has shape \(2, 6\), expected \(2,\)"),
    "seeds": ({}, {"dropout": WeightDropout(jnp.ones((2, 3), jnp.int32), 0.1)}, r"seeds \(2, 3\) and rate 0.1, expected \(2, 4\)"),
    "rate": ({}, {"dropout": WeightDropout(jnp.ones((2, 4), jnp.int32), 1.0)}, r"rate 1.0, expected .* in \[0, 1\)"),
    "name": ({}, {"implementation": "cuda"}, "'cuda' is unknown: expected one of xla, xla_chunked, pallas_tpu, pallas_gpu, cudnn"),
    "cudnn without a GPU": ({}, {"implementation": "cudnn"}, "'cudnn' cannot do .* cpu"),
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


CANNOT = {
    "pallas_tpu": {"platform": "gpu"},
    "pallas_gpu": {"platform": "tpu"},
    "cudnn": {"head_size": 256, "value_size": 256},
}


@pytest.mark.parametrize("name", CANNOT)
def test_a_backend_says_why_it_cannot(name):
    home = {"pallas_tpu": "tpu"}.get(name, "gpu")
    spec = Spec(1, 512, 512, 2, 2, 64, 64, jnp.dtype(jnp.bfloat16), True, False, home)
    assert BACKENDS[name].why_not(spec) is None
    reason = BACKENDS[name].why_not(replace(spec, **CANNOT[name]))
    assert reason and issubclass(UserError, ValueError)


def test_cudnn_that_is_not_installed_is_named_with_what_installs_it(monkeypatch):
    def missing(*_, **__):
        raise RuntimeError("cuDNN not found.")

    monkeypatch.setattr(jax.nn, "dot_product_attention", missing)
    q, kv = jnp.zeros((1, 2, 1, 4, 8), jnp.bfloat16), jnp.zeros((1, 2, 4, 8), jnp.bfloat16)
    with pytest.raises(UserError, match="pip install nvidia-cudnn-cu12"):
        BACKENDS["cudnn"].attend(q, kv, kv, AttnMask(), 1.0)
