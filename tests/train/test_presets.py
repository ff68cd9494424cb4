"""The same batch gives the same losses and gradients however the chips are arranged."""

from dataclasses import replace
from functools import cache

import jax
import numpy as np
import pytest
from flax import nnx
from micro_run import LADDERS, MODEL, micro_config

from unipixel_jax.core.buckets import Ladder
from unipixel_jax.core.mesh import MeshConfig, data_shards, sharers
from unipixel_jax.data.pipeline import DrawSample, open_loader, open_mixture
from unipixel_jax.models.lora import LoraConfig
from unipixel_jax.processing.tokenizer import Tokenizer
from unipixel_jax.train.feed import to_batch
from unipixel_jax.train.setup import lay_out, set_up
from unipixel_jax.train.step import make_gradients, make_update, step_key

TEXT = replace(MODEL.text, num_attention_heads=4, num_key_value_heads=2, hidden_size=32, intermediate_size=32)
WIDE = replace(MODEL, text=TEXT, vision=replace(MODEL.vision, out_hidden_size=32))
"""With heads enough to divide."""

MESHES = {
    "single": (MeshConfig("single"), 1),
    "dp, 2": (MeshConfig("dp"), 2),
    "dp, 8": (MeshConfig("dp"), 8),
    "fsdp, 4": (MeshConfig("fsdp"), 4),
    "fsdp, 8": (MeshConfig("fsdp"), 8),
    "fsdp_tp, 4": (MeshConfig("fsdp_tp", tensor=2), 4),
    "fsdp_tp, 8": (MeshConfig("fsdp_tp", tensor=4), 8),
    "hybrid, 8": (MeshConfig("hybrid", slices=2), 8),
    "fsdp and context, 8": (MeshConfig("fsdp", context=2), 8),
    "fsdp_tp and context, 8": (MeshConfig("fsdp_tp", tensor=2, context=2), 8),
}
BOUND = 1e-5
"""Of the norm of a difference to that of the whole."""


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    from unipixel_jax.convert import to_jax
    from unipixel_jax.convert.random import random_source
    from unipixel_jax.infer.loading import EMBEDDED

    directory = tmp_path_factory.mktemp("start") / "model"
    to_jax.convert(random_source(WIDE, EMBEDDED, 0), directory)
    return directory


def flat(state):
    return {path: leaf.get_value() for path, leaf in nnx.to_flat_state(state)}


def config_of(start, mesh, kind):
    config = micro_config(start, mesh=mesh, lora=LoraConfig(rank=4), trained=("lora", "embedding", "ref", "ref_enc", "msk", "seg", "sam2"))
    return replace(config, data=replace(config.data, datasets=kind))


def one_step(start, mesh, count, kind):
    """Losses and gradients of a batch, and the weights after two updates, on the host."""
    config = config_of(start, mesh, kind)
    setup = set_up(lay_out(config, WIDE, 6, jax.devices()[:count]), start)
    tokenizer = Tokenizer.from_directory(start)
    shared = sharers(setup.mesh)
    rows = Ladder("rows", data_shards(setup.mesh), 1.0, 8)
    ladders = replace(LADDERS, batch=rows, objects=replace(LADDERS.objects, step=4))
    draw = DrawSample(tokenizer, setup.model_config, replace(config.data.draw, image_size=128))
    with open_loader(
        open_mixture(kind, "", 8, 0), draw, config.data.loader, ladders=ladders, packed=False, parts=shared if shared > 1 else None
    ) as loader:
        arrays = next(loader).arrays
    gradients, update = make_gradients(setup), make_update(setup)
    state, first = setup.state, None
    for number in range(2):
        grads, parts = gradients(state.trained, setup.frozen, to_batch(arrays, setup.mesh), step_key(0, number, 0))
        first = jax.device_get((parts, flat(grads))) if number == 0 else first
        state, numbers = update(state, grads, parts.total)
    assert bool(numbers.finite)
    return first, jax.device_get(state.trained)


@pytest.fixture(scope="module")
def whole(start):
    """A function from the kind of batch to the losses and gradients of one chip."""
    return cache(lambda kind: one_step(start, MeshConfig("single"), 1, kind)[0])


QUICK = ("fsdp, 8", "fsdp_tp and context, 8")
"""Of the normal suite, with pictures; between them they divide everything."""
CASES = [
    pytest.param(name, kind, marks=() if name in QUICK and kind == "shapes_image" else pytest.mark.slow)
    for name in MESHES
    for kind in ("shapes_image", "shapes_clip")
]


@pytest.mark.parametrize(("name", "kind"), [case for case in CASES if case.values[0] != "single"])
def test_a_divided_batch_equals_a_whole_one(start, whole, name, kind):
    wanted = whole(kind)
    found, _ = one_step(start, *MESHES[name], kind)
    for a, b in zip(jax.tree.leaves(found[0]), jax.tree.leaves(wanted[0]), strict=True):
        np.testing.assert_allclose(a, b, rtol=BOUND, atol=1e-7)
    total = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(wanted[1])))
    for path, grad in wanted[1].items():
        assert np.linalg.norm(found[1][path] - grad) <= BOUND * max(np.linalg.norm(grad), 1e-3 * total), path


@pytest.mark.parametrize("name", ["dp, 8", "fsdp, 8", "fsdp_tp and context, 8"])
def test_weights_are_read_and_made_the_same_bit_by_bit(start, name):
    mesh, count = MESHES[name]
    alone = set_up(lay_out(config_of(start, MeshConfig("single"), "shapes_image"), WIDE, 6, jax.devices()[:1]), start)
    divided = set_up(lay_out(config_of(start, mesh, "shapes_image"), WIDE, 6, jax.devices()[:count]), start)
    for a, b in zip(jax.tree.leaves((alone.state, alone.frozen)), jax.tree.leaves((divided.state, divided.frozen)), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    held = sum(leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(divided.frozen))
    whole = sum(leaf.size for leaf in jax.tree.leaves(divided.frozen))
    assert held == whole if name == "dp, 8" else held < 0.6 * whole
