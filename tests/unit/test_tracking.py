"""The tracker's bookkeeping on the host: columns, slots, growth, and what is shown of masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from micro_models import copied, micro_model, random

from unipixel_jax.errors import UserError
from unipixel_jax.infer import tracking
from unipixel_jax.infer.stream import filled
from unipixel_jax.infer.tracking import CONDITIONING, Tracker

F32 = jnp.dtype("float32")
CLOSE = 1e-4
"""Largest difference of logits of order 1 to 10 after some frames of feedback, as in test_tracker.py."""


@pytest.fixture(scope="module")
def clip():
    """A model whose objects are mostly there, and the features of seven frames."""
    sam2 = copied(micro_model()).sam2
    sam2.mask_decoder.obj_score_head.fc3.bias[...] += 5
    encode = jax.jit(lambda sam2, image: sam2.encode(image))
    images = random(np.random.default_rng(7), 7, 32, 32, 3)
    return sam2, [encode(sam2, images[i : i + 1]) for i in range(7)]


def hidden(count, seed=3):
    return random(np.random.default_rng(seed), count, 2, 16)


def test_words_on_the_first_frame_are_a_clip(clip):
    sam2, frames = clip
    whole = jax.jit(lambda s, f, h: s.track(f, h, 7))(sam2, jax.tree.map(lambda *a: jnp.concatenate(a), *frames), hidden(3))
    tracker = Tracker(sam2, F32, clip_length=7)
    for number, features in enumerate(frames):
        tracker.observe(number, features)
        if number == 0:
            assert tracker.add_words(np.asarray(hidden(3))) == [1, 2, 3]
        tracker.step()
        for one in (1, 2, 3):
            np.testing.assert_allclose(tracker.output(one).low_res, whole.low_res[number, one - 1], atol=CLOSE, rtol=CLOSE)
            np.testing.assert_allclose(tracker.output(one).iou, whole.iou[number, one - 1], atol=CLOSE)
    assert np.mean(np.asarray(whole.decoded.object_score) > 0) > 0.5


def followed(clip, extra):
    """The last masks of the first object, with others that come and go beside it or not."""
    sam2, frames = clip
    tracker = Tracker(sam2, F32, clip_length=7)
    for number, features in enumerate(frames):
        tracker.observe(number, features)
        if number == 0:
            tracker.add_words(np.asarray(hidden(1)))
        tracker.step()
        if extra and number in (1, 2, 4):
            found = tracker.add_words(np.asarray(hidden(2, seed=number)))
            if number == 4:
                tracker.remove(found[0])
    return tracker, tracker.output(1).low_res


def test_objects_that_come_and_go_disturb_no_other(clip):
    """The state grows from one column to eight meanwhile."""
    alone, expected = followed(clip, extra=False)
    tracker, found = followed(clip, extra=True)
    np.testing.assert_allclose(found, expected, atol=CLOSE, rtol=CLOSE)
    assert tracker.objects == [1, 2, 3, 4, 5, 7]
    assert len(np.asarray(alone.save()["memory"])[0]) == 1 < len(np.asarray(tracker.save()["memory"])[0])
    assert np.abs(found).max() < 1000, "the object is there, so that the comparison says something"


def test_what_was_saved_goes_on_as_if_nothing_had_happened(clip):
    sam2, frames = clip
    tracker, _ = followed(clip, extra=True)
    saved = {name: np.asarray(value) for name, value in tracker.save().items()}
    other = Tracker(sam2, F32, clip_length=7)
    other.restore(saved)
    for one in (tracker, other):
        one.observe(7, frames[2])
        one.step()
    for number in tracker.objects:
        np.testing.assert_array_equal(tracker.output(number).low_res, other.output(number).low_res)
    with pytest.raises(UserError, match=r"the saved state has pointer float32\[3\], expected float32"):
        other.restore(saved | {"pointer": np.zeros(3, np.float32)})
    with pytest.raises(UserError, match="the saved state has 6 objects in 0 columns"):
        other.restore(saved | {"memory": np.zeros(3, np.float32)})


def test_of_too_many_prompted_frames_the_farthest_are_given_up(clip):
    sam2, frames = clip
    tracker = Tracker(sam2, F32)
    for number in (10, 0, 5, 11, 12, 20):
        tracker.observe(number, frames[number % 7])
        tracker.add_points([(3, 4)], [1], (32, 32), 1 if tracker.objects else None)
    kept = np.asarray(tracker.save()["memory_frame"])[:CONDITIONING, 0]
    assert sorted(kept.tolist()) == [10, 11, 12, 20] and tracker.first_frame(1) == 10


def test_a_prompt_on_a_tracked_frame_takes_its_place(clip):
    sam2, frames = clip
    tracker = Tracker(sam2, F32)
    for number in range(3):
        tracker.observe(number, frames[number])
        if number == 0:
            tracker.add_points([(3, 4)], [1], (32, 32))
        tracker.step()
    tracker.add_points([(20, 4), (3, 3)], [1, 0], (32, 32), 1)
    numbers = np.asarray(tracker.save()["memory_frame"])[:, 0]
    assert sorted(numbers[:CONDITIONING].tolist()) == [-1, -1, 0, 2] and sorted(numbers[CONDITIONING:].tolist())[-1] == 1


def test_more_objects_than_can_be_followed(clip, monkeypatch):
    sam2, frames = clip
    monkeypatch.setattr(tracking, "MAX_OBJECTS", 3)
    tracker = Tracker(sam2, F32)
    tracker.observe(0, frames[0])
    tracker.add_words(np.asarray(hidden(2)))
    with pytest.raises(UserError, match="2 objects beside 2 that are followed already, expected at most 3 together"):
        tracker.add_words(np.asarray(hidden(2)))
    assert tracker.objects == [1, 2]


def test_small_holes_are_filled():
    """Neighbours across corners are one hole; the world outside a mask is none if it is large."""
    low_res = np.full((20, 20), 5, np.float32)
    low_res[5:7, 5:7] = low_res[7, 7] = -3
    low_res[10:16, 10:16] = -2
    assert np.flatnonzero(filled(low_res, 5) != low_res).tolist() == [105, 106, 125, 126, 147]
    np.testing.assert_array_equal(filled(low_res, 4), low_res)
    assert filled(low_res, 0) is low_res
