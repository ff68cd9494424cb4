"""The tracker: one step is a clip, a stream, several objects; its state never grows."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from micro_models import MICRO, copied, micro_model, random

from unipixel_jax.core.mesh import MeshConfig, make_mesh
from unipixel_jax.models.sam2.track_state import MAX_POINTERS
from unipixel_jax.models.sam2.tracker import NO_OBJECT

F32 = jnp.dtype("float32")
CLOSE = 1e-4
"""Largest difference of logits of order 1 to 10 after six frames of feedback, where only the order of sums may differ; the largest seen is 3.5e-5."""


@functools.cache
def programs():
    """Compiled once for all tests of this file: encode, step, track, segment_frames."""
    return (
        jax.jit(lambda s, x: s.encode(x)),
        jax.jit(lambda s, state, features, hidden: s.step(state, features, hidden)),
        jax.jit(lambda s, features, hidden, length: s.track(features, hidden, length)),
        jax.jit(lambda s, features, hidden: s.segment_frames(features, hidden)),
    )


@pytest.fixture(scope="module")
def clip():
    """A model, the features of seven frames, and the hidden tokens of three objects, which are in about half of the frames."""
    rng, sam2 = np.random.default_rng(7), copied(micro_model()).sam2
    features, hidden = programs()[0](sam2, random(rng, 7, 32, 32, 3)), random(rng, 3, 2, 16)
    bias = sam2.mask_decoder.obj_score_head.fc3.bias

    def margin(value):
        """How far the nearest score is from zero; nothing if the objects are in most frames or in few."""
        bias[...] = value
        scores = np.asarray(programs()[2](sam2, features, hidden, 7).decoded.object_score)
        return np.abs(scores).min() if 0.25 < np.mean(scores > 0) < 0.75 else 0.0

    start = np.asarray(bias[...])
    scores = np.asarray(programs()[2](sam2, features, hidden, 7).decoded.object_score)
    bias[...] = max((jnp.asarray(start - shift) for shift in np.linspace(scores.min(), scores.max(), 60, dtype=np.float32)), key=margin)
    assert margin(bias[...]) > 0.005
    return sam2, features, hidden


def frame(features, number):
    return jax.tree.map(lambda a: a[number : number + 1], features)


def streamed(sam2, features, hidden, count, length=None):
    state = sam2.start(len(hidden), F32) if length is None else sam2.start(len(hidden), F32, length)
    outputs = []
    for number in range(count):
        state, out = programs()[1](sam2, state, frame(features, number), hidden)
        outputs.append(out)
    return state, jax.tree.map(lambda *a: jnp.stack(a), *outputs)


def assert_close(ours, theirs):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=CLOSE, rtol=CLOSE)


def test_devices_share_frames_that_do_not_divide(clip):
    """Seven frames on four devices that share them: two each, and the same features."""
    images = random(np.random.default_rng(3), 7, 32, 32, 3)
    alone = programs()[0](clip[0], images)
    with jax.set_mesh(make_mesh(MeshConfig("dp", context=4), jax.devices()[:4])):
        encode = jax.jit(lambda s, x: s.encode(x))
        divided, text = encode(clip[0], images), encode.lower(clip[0], images).compile().as_text()
    for a, b in zip(jax.tree.leaves(divided), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    images_of = {int(count) for count in re.findall(r"f32\[(\d+),\d+,\d+,\d+\]\S* convolution\(", text)}
    assert images_of == {2}, images_of


def test_streaming_equals_the_clip(clip):
    sam2, features, hidden = clip
    assert_close(streamed(sam2, features, hidden, 7, 7)[1], programs()[2](sam2, features, hidden, 7))


def test_objects_do_not_see_each_other(clip):
    sam2, features, hidden = clip
    together = programs()[2](sam2, features, hidden, 7)
    for number in range(3):
        alone = programs()[2](sam2, features, hidden[number : number + 1], 7)
        assert_close(alone, jax.tree.map(lambda a, n=number: a[:, n : n + 1], together))


def test_frames_beyond_the_end_disturb_nothing(clip):
    sam2, features, hidden = clip
    whole = programs()[2](sam2, jax.tree.map(lambda a: a[:4], features), hidden, 4)
    for filler in (0.0, 100.0):
        longer = jax.tree.map(lambda a, f=filler: a.at[4:].set(f), features)
        assert_close(jax.tree.map(lambda a: a[:4], programs()[2](sam2, longer, hidden, 4)), whole)


def test_padding_after_a_single_frame_is_finite(clip):
    """Losses count padding with a weight of zero, which NaN would not respect."""
    sam2, features, hidden = clip
    out = programs()[2](sam2, features, hidden, 1)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(out))


def test_the_clip_remembers(clip):
    """A change in the first frame shows in later ones, also after it left the ring of recent memories, and the length of a clip matters."""
    sam2, features, hidden = clip
    low = programs()[2](sam2, features, hidden, 7).decoded.masks
    other = jax.tree.map(lambda a: a.at[0].add(0.5), features)
    changed = np.abs(np.asarray(programs()[2](sam2, other, hidden, 7).decoded.masks - low)).max(axis=(1, 2, 3, 4))
    assert np.all(changed > 1e-3)
    assert MICRO.sam2.num_maskmem < 7
    longer = programs()[2](sam2, features, hidden, 15).decoded.masks
    np.testing.assert_array_equal(longer[0], low[0])
    assert np.abs(np.asarray(longer - low)).max() > 1e-4
    # from 16 frames on the code of time does not depend on the length
    np.testing.assert_array_equal(programs()[2](sam2, features, hidden, 16).decoded.masks, programs()[2](sam2, features, hidden, 1000).decoded.masks)


def test_frames_by_themselves_are_first_frames(clip):
    sam2, features, hidden = clip
    out = programs()[3](sam2, features, hidden)
    for number in (0, 4):
        first = streamed(sam2, frame(features, number), hidden, 1)[1]
        assert_close(jax.tree.map(lambda a, n=number: a[n : n + 1], out), first)


def test_absent_objects_have_no_mask(clip):
    sam2, features, hidden = clip
    out = programs()[2](sam2, features, hidden, 7)
    absent = np.asarray(out.decoded.object_score) <= 0
    assert 0 < absent.mean() < 1
    low = np.asarray(out.low_res)
    assert np.all(low[absent] == NO_OBJECT) and np.all(low[~absent] != NO_OBJECT)
    best = np.argmax(np.asarray(out.decoded.iou), axis=-1)
    for place in zip(*np.nonzero(~absent), strict=True):
        np.testing.assert_array_equal(low[place], np.asarray(out.decoded.masks)[place][best[place]])


def test_the_state_has_the_same_size_after_10_and_1000_frames(clip):
    sam2, features, hidden = clip
    state = sam2.start(3, F32)
    sizes = {}
    for number in range(1000):
        state, _ = programs()[1](sam2, state, frame(features, number % 7), hidden)
        if number + 1 in (10, 1000):
            sizes[number + 1] = [(a.shape, a.dtype, a.nbytes) for a in jax.tree.leaves(state)]
    assert sizes[10] == sizes[1000]
    assert int(state.frame) == 1000
    # the conditioning frame and the latest ones, in whatever order
    memories, pointers = MICRO.sam2.num_maskmem, MAX_POINTERS
    assert sorted(np.asarray(state.memory_frame)[:, 1].tolist()) == [0, *range(1001 - memories, 1000)]
    assert sorted(np.asarray(state.pointer_frame)[:, 1].tolist()) == [0, *range(1001 - pointers, 1000)]
    assert all(np.all(np.isfinite(np.asarray(a))) for a in jax.tree.leaves(state))
