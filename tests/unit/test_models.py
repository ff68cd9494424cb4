"""Properties of the models with any weights: padding is invisible, a cache changes nothing, two ways to compute the same agree."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from micro_models import MICRO, copied, micro_model, random

from unipixel_jax.config import preset
from unipixel_jax.core import stacking
from unipixel_jax.core.buckets import BUCKETS, Buckets
from unipixel_jax.core.stacking import unstack
from unipixel_jax.models.layers import Linear
from unipixel_jax.models.qwen_vl.cache import KVCache
from unipixel_jax.models.unipixel import abstract_model
from unipixel_jax.processing.rope_index import rope_index
from unipixel_jax.processing.vision_index import build_vision_index, place_patches

CLOSE = 3e-6
"""Largest difference of values of order 1 where only the order of sums may differ; the largest seen is 1e-6."""
F32 = jnp.dtype("float32")


@jax.jit
def see(vision, patches, tables):
    return vision(patches, tables)


@jax.jit
def read(text, x, positions, segments):
    return text(x, positions, segments)


def tables_of(grids, buckets=BUCKETS):
    index, places = build_vision_index(grids, MICRO.vision, buckets)
    return jax.device_put(index), places


def laid_out(patches, tables, places, filler=0.0):
    """Patches [n, patch_dim] in the order of the tower, with ``filler`` at padding."""
    out = np.full((len(tables.rope), patches.shape[1]), filler, np.float32)
    place_patches([np.asarray(patches)], places, out)
    return jnp.asarray(out)


GRIDS = [[2, 4, 6], [1, 6, 10]]
ROOMY = dataclasses.replace(BUCKETS, patches=Buckets("patches", 200, 1.5, 4000), grid_frames=Buckets("pairs", 7, 1.5, 100))


def test_vision_padding_is_invisible(rng):
    vision = micro_model().vision
    patches = random(rng, 108, MICRO.vision.patch_dim)
    tight, places = tables_of(GRIDS)
    roomy, same_places = tables_of(GRIDS, ROOMY)
    np.testing.assert_array_equal(places, same_places)
    assert len(roomy.rope) > len(tight.rope) > len(patches)
    expected, merged = see(vision, laid_out(patches, tight, places), tight)
    for filler in (0.0, 1e3):
        for tables in (tight, roomy):
            tokens, merger_input = see(vision, laid_out(patches, tables, places, filler), tables)
            np.testing.assert_allclose(tokens[places], expected[places], atol=CLOSE)
            np.testing.assert_allclose(merger_input[places], merged[places], atol=CLOSE)


def test_clips_of_a_batch_do_not_see_each_other(rng):
    vision = micro_model().vision
    patches = random(rng, 108, MICRO.vision.patch_dim)
    tables, places = tables_of(GRIDS)
    together = see(vision, laid_out(patches, tables, places), tables)[0][places]
    second, own = tables_of(GRIDS[1:])
    alone = see(vision, laid_out(patches[48:], second, own), second)[0][own]
    np.testing.assert_allclose(together[12:27], alone, atol=CLOSE)
    # and full attention does see beyond its window: the first clip's first frame knows both of its windows, not the second frame
    changed = patches.at[24:48].add(1.0)
    again = see(vision, laid_out(changed, tables, places), tables)[0][places]
    np.testing.assert_array_equal(again[:6], together[:6])
    assert np.all(np.abs(np.asarray(again - together))[6:12].max(axis=1) > 1e-3)


def prompt_rows(rng, lengths, width):
    """Ids padded on the left, their positions and segments."""
    ids = np.zeros((len(lengths), width), np.int32)
    for row, length in enumerate(lengths):
        ids[row, width - length :] = rng.integers(0, 60, length)
    valid = np.arange(width) >= width - np.array(lengths)[:, None]
    positions, deltas = rope_index(ids, MICRO, attention_mask=valid)
    return jnp.asarray(ids), jnp.asarray(positions), jnp.asarray(valid.astype(np.int32)), deltas


def test_left_padding_is_invisible(rng):
    text = micro_model().text
    ids, positions, segments, _ = prompt_rows(rng, (5, 9), 16)
    together = read(text, text.embed(ids, F32), positions, segments)
    for row, length in enumerate((5, 9)):
        own = ids[row : row + 1, 16 - length :]
        plain = jnp.broadcast_to(jnp.arange(length)[None, None], (3, 1, length))
        alone = read(text, text.embed(own, F32), plain, jnp.ones_like(own))
        np.testing.assert_allclose(together[row, 16 - length :], alone[0], atol=CLOSE)


def test_attention_is_causal_and_positions_are_relative(rng):
    text = micro_model().text
    ids, positions, segments, _ = prompt_rows(rng, (12,), 12)
    x = text.embed(ids, F32)
    whole = read(text, x, positions, segments)
    later_changed = read(text, x.at[:, 8:].add(1.0), positions, segments)
    np.testing.assert_array_equal(whole[:, :8], later_changed[:, :8])
    # rotary codes know differences only, up to the rounding of larger angles
    np.testing.assert_allclose(read(text, x, positions + 50, segments), whole, atol=2e-5)


def test_cached_decoding_equals_the_full_forward(rng):
    text = micro_model().text
    ids, positions, segments, _ = prompt_rows(rng, (4, 8), 12)
    x = text.embed(ids, F32)
    whole = read(text, x, positions, segments)

    @jax.jit
    def continued(text, x, positions, segments, cache, at):
        return text.extend(x, positions, segments, cache, at)

    cache = KVCache.empty(MICRO.text, 2, 15, F32)
    first, cache = continued(text, x[:, :9], positions[:, :, :9], segments[:, :9], cache, 0)
    np.testing.assert_allclose(first[1], whole[1, :9], atol=CLOSE)
    for at in range(9, 12):
        step, cache = continued(text, x[:, at : at + 1], positions[:, :, at : at + 1], segments[:, at : at + 1], cache, at)
        np.testing.assert_allclose(step[:, 0], whole[:, at], atol=CLOSE)
    np.testing.assert_array_equal(cache.segments[0], [0] * 8 + [1] * 4 + [0] * 3)


@pytest.mark.parametrize("unused", [0, 3])
def test_a_cache_is_continued_by_several_tokens(rng, unused):
    """Tokens see all of the cache before them and each other causally; padding behind them leaves slots that the next tokens take."""
    text = micro_model().text
    ids, positions, segments, _ = prompt_rows(rng, (9, 13), 13)
    x = text.embed(ids, F32)
    whole = read(text, x, positions, segments)
    extend = jax.jit(lambda text, *rest: text.extend(*rest, continues=True))
    cache = KVCache.empty(MICRO.text, 2, 20, F32)
    for first, last in ((0, 6), (6, 10), (10, 13)):
        piece = [jnp.pad(a[..., first:last], [(0, 0)] * (a.ndim - 1) + [(0, unused)]) for a in (positions, segments)]
        states, cache = extend(text, jnp.pad(x[:, first:last], ((0, 0), (0, unused), (0, 0))), *piece, cache, first)
        for row, padding in enumerate((4, 0)):
            valid = slice(max(padding - first, 0), last - first)
            np.testing.assert_allclose(states[row, valid], whole[row, first:last][valid], atol=CLOSE)


def test_slots_have_no_order(rng):
    """A token sees the same in a cache whose slots were moved in a ring, as long as its own slot holds nothing else."""
    text = micro_model().text
    ids, positions, segments, _ = prompt_rows(rng, (4, 8), 9)
    x = text.embed(ids, F32)
    extend = jax.jit(lambda text, *rest: text.extend(*rest))
    _, cache = extend(text, x[:, :8], positions[:, :, :8], segments[:, :8], KVCache.empty(MICRO.text, 2, 11, F32), 0)
    own = (x[:, 8:], positions[:, :, 8:], segments[:, 8:])
    wanted, _ = extend(text, *own, cache, 8)
    moved, after = extend(text, *own, cache.rolled(5).padded(13), 2)
    np.testing.assert_allclose(moved, wanted, atol=CLOSE)
    np.testing.assert_array_equal(after.segments[1], [1] * 3 + [0] * 3 + [1] * 5 + [0] * 2)


def test_logits_use_the_head_or_the_tied_embedding(rng):
    text = copied(micro_model()).text
    hidden = random(rng, 2, MICRO.text.hidden_size)
    normed = np.asarray(text.norm(hidden))
    np.testing.assert_allclose(text.logits(hidden), normed @ np.asarray(text.head.weight[...]).T, atol=1e-5)
    text.head = None
    np.testing.assert_allclose(text.logits(hidden), normed @ np.asarray(text.embed.weight[...]).T, atol=1e-4)


@pytest.mark.parametrize("part", ["text", "vision", "sam2"])
def test_unstacked_blocks_compute_the_same(part, rng):
    stacked, unstacked = micro_model(), copied(micro_model())
    owners = {"text": [unstacked.text], "vision": [unstacked.vision], "sam2": [*unstacked.sam2.hiera.stages, unstacked.sam2.memory_attention]}[part]
    for owner in owners:
        if owner.blocks is not None:
            owner.blocks = unstack(owner.blocks)
    if part == "text":
        ids, positions, segments, _ = prompt_rows(rng, (6,), 8)
        results = [read(m.text, m.text.embed(ids, F32), positions, segments) for m in (stacked, unstacked)]
    elif part == "vision":
        tables, places = tables_of(GRIDS)
        patches = laid_out(random(rng, 108, MICRO.vision.patch_dim), tables, places)
        results = [see(m.vision, patches, tables)[0][places] for m in (stacked, unstacked)]
    else:
        frames, hidden = random(rng, 3, 32, 32, 3), random(rng, 2, 2, 16)
        results = [jax.jit(lambda s: s.track(s.encode(frames), hidden, 3).low_res)(m.sam2) for m in (stacked, unstacked)]
    np.testing.assert_allclose(*results, atol=3e-5)


@pytest.mark.parametrize(("remat", "scan"), [("none", True), ("dots", True), ("half", True), ("full", True), ("full", False)])
def test_runs_of_a_stack_compute_what_its_layers_do(rng, remat, scan):
    blocks = stacking.stack(lambda r: Linear(4, 4, (None, None), r), 6, nnx.Rngs(0))
    kinds, scales = (0.5, 0.5, 1.0, 1.5, 1.5, 1.5), np.arange(1, 7, dtype=np.float32) / 6
    assert list(stacking.runs(kinds)) == [(0.5, range(2)), (1.0, range(2, 3)), (1.5, range(3, 6))]

    def value(blocks, x):
        ys = []
        for kind, layers in stacking.runs(kinds):
            step = lambda block, x, scale, kind=kind: (jnp.tanh(block(x) * scale) * kind, jnp.sum(x))  # noqa: E731
            x, y = stacking.run(step, blocks, x, scales[layers.start : layers.stop], remat, layers, scan)
            ys.append(y)
        return jnp.sum(x**2), jnp.concatenate(ys)

    def of_layers(blocks, x):
        return value(unstack(blocks), x)

    x = random(rng, 3, 4)
    found, expected = (jax.jit(jax.value_and_grad(f, (0, 1), has_aux=True))(blocks, x) for f in (value, of_layers))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("remat", ["dots", "half", "full"])
def test_recomputing_in_the_backward_pass_changes_no_gradient(rng, remat):
    text = micro_model().text
    ids, positions, segments, _ = prompt_rows(rng, (6,), 6)

    def loss(text, remat):
        return jnp.sum(text(text.embed(ids, F32), positions, segments, remat=remat)[0] ** 2)

    plain, recomputed = (jax.jit(jax.grad(loss), static_argnums=1)(text, policy) for policy in ("none", remat))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(recomputed), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    # of a layer's seven products none is computed again, or all but up and the last, or all but the last, whose result the gradient does not need
    products = [str(jax.make_jaxpr(jax.grad(loss), static_argnums=1)(text, policy)).count("dot_general") for policy in ("none", remat)]
    assert products[1] - products[0] == {"dots": 2, "half": 7, "full": 8}[remat]


def test_the_3b_language_model_is_a_small_program():
    """Scanning keeps the program small: unrolled, 36 layers are 800 kB."""

    def text_of(config):
        model = abstract_model(config).text
        shape = jax.ShapeDtypeStruct
        arguments = (
            shape((1, 512, config.text.hidden_size), jnp.bfloat16),
            shape((3, 1, 512), jnp.int32),
            shape((1, 512), jnp.int32),
        )
        return jax.jit(lambda text, *a: text.logits(text(*a)[:, -1])).lower(model, *arguments).as_text()

    large = preset("3b")
    program = text_of(large)
    assert len(program) < 100_000
    shallow = dataclasses.replace(large, text=dataclasses.replace(large.text, num_hidden_layers=2))
    assert len(text_of(shallow)) == pytest.approx(len(program), rel=0.02)
