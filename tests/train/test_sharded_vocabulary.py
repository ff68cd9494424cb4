"""The language loss and the embedding over a sharded vocabulary equal those of a whole one, in values and gradients."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from unipixel_jax.core.mesh import MeshConfig, make_mesh
from unipixel_jax.losses.lm import IGNORE, next_token_loss
from unipixel_jax.ops.take import sharded_embedding_lookup, take_rows

ROWS, TOKENS, WIDTH, VOCABULARY, WATCHED = 8, 20, 16, 61, 7
MESHES = [
    *(MeshConfig("dp"), MeshConfig("fsdp"), MeshConfig("hybrid", slices=2), MeshConfig("fsdp_tp", tensor=2)),
    *(MeshConfig("fsdp_tp", tensor=2, context=2), MeshConfig("fsdp", context=4), MeshConfig("dp", context=2)),
]


@pytest.fixture
def arrays(rng):
    labels = np.where(rng.random((ROWS, TOKENS)) < 0.6, rng.integers(0, VOCABULARY, (ROWS, TOKENS)), IGNORE)
    labels[:3, 5] = WATCHED
    states = rng.normal(size=(ROWS, TOKENS, WIDTH)).astype(np.float32)
    head = rng.normal(size=(VOCABULARY, WIDTH)).astype(np.float32)
    states[0, 4] = 3 * head[WATCHED]  # so that the model says it once
    return states, head, labels.astype(np.int32), rng.random((ROWS, TOKENS)).astype(np.float32)


def dense_loss(states, head, labels, weights):
    scores = jax.nn.log_softmax(states[:, :-1] @ head.T)
    picked = jnp.take_along_axis(scores, jnp.maximum(labels[:, 1:], 0)[..., None], axis=-1)[..., 0]
    return -jnp.sum(jnp.where(labels[:, 1:] == IGNORE, 0.0, picked * weights[:, 1:]))


@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("chunk", [3, 512])
def test_language_loss(mesh, chunk, arrays):
    wanted = jax.value_and_grad(dense_loss, (0, 1))(*map(jnp.asarray, arrays))
    run = jax.jit(jax.value_and_grad(lambda *a: next_token_loss(*a, WATCHED, chunk), (0, 1), has_aux=True))
    alone = run(*arrays)
    with jax.set_mesh(make_mesh(mesh, jax.devices())):
        sharded = run(*arrays)
    for found in (alone, sharded):
        (loss, (said, count)), grads = found
        np.testing.assert_allclose(loss, wanted[0], rtol=1e-6)
        for a, b in zip(grads, wanted[1], strict=True):
            np.testing.assert_allclose(a, b, atol=2e-6 * np.abs(b).max())
        scores = arrays[0] @ arrays[1].T
        at = np.argwhere(arrays[2][:, 1:] == WATCHED)
        assert float(said) == np.sum([np.argmax(scores[row, t]) == WATCHED for row, t in at]) > 0
        assert int(count) == len(at)


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_embedding(mesh, arrays, rng):
    table, ids = jnp.asarray(arrays[1]), rng.integers(0, VOCABULARY, (ROWS, 1, TOKENS)).astype(np.int32)
    weight = rng.normal(size=(ROWS, 1, TOKENS, WIDTH)).astype(np.float32)
    wanted = jax.value_and_grad(lambda t: jnp.sum(take_rows(t, ids) * weight))(table)
    with jax.set_mesh(make_mesh(mesh, jax.devices())):
        found = jax.jit(jax.value_and_grad(lambda t: jnp.sum(sharded_embedding_lookup(t, ids, jnp.dtype("float32")) * weight)))(table)
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-5)
    np.testing.assert_allclose(found[1], wanted[1], atol=1e-5)


def test_no_device_holds_the_table(arrays):
    """The devices all-gather tokens; of the table, which is stored sharded by columns, they exchange shards and never gather it."""
    mesh = make_mesh(MeshConfig("fsdp"), jax.devices())
    kept, rows = NamedSharding(mesh, PartitionSpec(None, "fsdp")), NamedSharding(mesh, PartitionSpec("fsdp"))
    with jax.set_mesh(mesh):
        gradient = jax.jit(jax.grad(lambda *a: next_token_loss(*a)[0], 1), in_shardings=(rows, kept, rows, rows), out_shardings=kept)
        text = gradient.lower(*arrays).compile().as_text()
    assert " all-to-all(" in text and f"f32[{-(-VOCABULARY // 8)},{WIDTH}]" in text
    gathered = re.findall(r"= (\w+\[[\d,]*\])\S* all-gather\(", text)
    assert f"f32[{ROWS * TOKENS},{WIDTH}]" in gathered
    assert not any(shape.startswith(("f32[61,", "f32[64,")) for shape in gathered)
