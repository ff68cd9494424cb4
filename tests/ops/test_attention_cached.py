"""Attention to the live blocks of a cache, against dense attention over all of its slots."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unipixel_jax.core.mesh import MeshConfig, OnMesh, make_mesh
from unipixel_jax.ops.attention import AttnMask, attention
from unipixel_jax.ops.attention.cached import BLOCK, LiveBlocks, _on_every_device, attend_to_cache
from unipixel_jax.ops.attention.cached_gpu import SPLIT, attend_to_seen

LAYERS, LAYER = 3, 1
CLOSE = {"float32": 1e-6, "bfloat16": 1e-2}
"""The largest differences of results whose entries are about as large as 1, by dtype; 4e-7 and 4e-3 were measured."""


def drawn(rng, queries, slots, dtype, batch=3, heads=4, key_heads=2, size=16):
    q, k, v = (rng.standard_normal(shape) for shape in ((batch, queries, heads, size), *[(LAYERS, batch, key_heads, slots, size)] * 2))
    return [jnp.asarray(a, dtype) for a in (q, k, v)]


def dense(q, k, v, segments, held, own):
    """The layer's whole cache, one query at a time, since each sees other slots."""
    k, v = (a[LAYER].swapaxes(1, 2) for a in (k, v))
    out = []
    for i in range(q.shape[1]):
        seen = held if q.shape[1] == 1 else np.where(np.arange(held.shape[1]) <= own[i], held, 0)
        out.append(attention(q[:, i : i + 1], k, v, AttnMask(q_segments=segments[:, i : i + 1], kv_segments=jnp.asarray(seen)), implementation="xla"))
    return jnp.concatenate(out, axis=1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("queries", [1, 5])
@pytest.mark.parametrize("slots", [40, BLOCK, 2 * BLOCK, 3 * BLOCK - 56])
@pytest.mark.parametrize("last", [0.1, 0.6, 1.0])
def test_a_cache_that_is_filled_to_some_slot(rng, dtype, queries, slots, last):
    q, k, v = drawn(rng, queries, slots, dtype)
    end = max(queries, round(last * slots))
    held = np.zeros((3, slots), np.int32)
    held[0, :end], held[1, end // 2 : end] = 1, 1  # a prompt that is padded on the left, and a row without an answer
    held[2, :end] = 1
    segments = jnp.asarray([[1] * queries, [1] * queries, [0] * queries], jnp.int32)
    own = end - queries + np.arange(queries)
    live = LiveBlocks.of(jnp.asarray(held), segments[:, 0] > 0)
    out = attend_to_cache(q, k, v, LAYER, segments, jnp.asarray(held), jnp.asarray(own), live)
    np.testing.assert_allclose(*(np.asarray(a, np.float32) for a in (out, dense(q, k, v, segments, held, own))), atol=CLOSE[dtype])
    assert int(live.count) == -(-end // BLOCK) and not np.asarray(out[2]).any()


def test_a_ring_in_which_the_latest_tokens_are_in_the_first_slots(rng):
    slots = 4 * BLOCK + 17
    q, k, v = drawn(rng, 1, slots, "float32")
    held = np.zeros((3, slots), np.int32)
    held[:, -BLOCK:], held[:, :3] = 1, 1
    segments = jnp.ones((3, 1), jnp.int32)
    live = LiveBlocks.of(jnp.asarray(held), jnp.ones(3, bool))
    out = attend_to_cache(q, k, v, LAYER, segments, jnp.asarray(held), jnp.asarray([2]), live)
    np.testing.assert_allclose(out, dense(q, k, v, segments, held, [2]), atol=CLOSE["float32"])
    assert int(live.count) == 3 and sorted(np.asarray(live.order[:3]).tolist()) == [0, 3, 4]


def test_blocks_that_hold_nothing_are_not_read(rng):
    """Blocks without a token hold NaN, which would spoil the sums if they were read."""
    q, k, v = drawn(rng, 1, 4 * BLOCK, "float32")
    held = np.zeros((3, 4 * BLOCK), np.int32)
    held[:, BLOCK : BLOCK + 9] = 1
    k, v = (a.at[:, :, :, 2 * BLOCK :].set(jnp.nan) for a in (k, v))

    @jax.jit
    def program(held, q, k, v):
        return attend_to_cache(q, k, v, LAYER, jnp.ones((3, 1), jnp.int32), held, jnp.asarray([0]), LiveBlocks.of(held, jnp.ones(3, bool)))

    assert np.isfinite(np.asarray(program(jnp.asarray(held), q, k, v))).all()
    held[0, 3 * BLOCK] = 1
    assert np.isnan(np.asarray(program(jnp.asarray(held), q, k, v))).any()
    assert program._cache_size() == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("slots", [40, SPLIT + 19])
def test_the_kernel_for_gpus(rng, dtype, slots):
    """Interpreted: rows of different lengths, one without a token; what lies in hidden slots is not read."""
    q, k, v = drawn(rng, 1, slots, dtype)
    held = np.zeros((3, slots), np.int32)
    held[0, : slots - 3], held[1, -5:], held[2, :9] = 1, 1, 1
    segments = jnp.asarray([[1], [1], [0]], jnp.int32)
    spoilt = [jnp.where(jnp.asarray(held)[None, :, None, :, None] == 0, jnp.nan, a) for a in (k, v)]
    out = attend_to_seen(q.reshape(3, 2, 2, 16), *spoilt, LAYER, segments[:, 0], jnp.asarray(held)).reshape(q.shape)
    np.testing.assert_allclose(*(np.asarray(a, np.float32) for a in (out, dense(q, k, v, segments, held, [0]))), atol=CLOSE[dtype])
    assert not np.asarray(out[2]).any()


def test_the_kernel_with_sharded_heads(rng):
    q, k, v = drawn(rng, 1, 40, "float32")
    held, segments, mesh = jnp.ones((3, 40), jnp.int32), jnp.ones((3,), jnp.int32), make_mesh(MeshConfig("fsdp_tp", tensor=2), jax.devices()[:2])
    run = OnMesh(mesh, jax.jit(lambda *arguments: _on_every_device(attend_to_seen, *arguments)))
    found = run(q.reshape(3, 2, 2, 16), k, v, LAYER, segments, held)
    np.testing.assert_allclose(found.reshape(q.shape), dense(q, k, v, segments[:, None], held, [0]), atol=CLOSE["float32"])
