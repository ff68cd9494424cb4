"""Prompts on images: what is asked together is what is asked alone, and prompts that mean nothing are refused. Recordings say that the masks are right."""

from pathlib import Path

import numpy as np
import pytest

from unipixel_jax.errors import UserError
from unipixel_jax.infer.sam2 import Sam2Predictor

CHECKPOINT = Path(__file__).parents[1] / "recordings" / "sam2_nano" / "checkpoint"
SIDE = 16


@pytest.fixture(scope="module")
def predictor():
    return Sam2Predictor.from_pretrained(CHECKPOINT)


@pytest.fixture(scope="module")
def image(predictor):
    return predictor.encode(np.random.default_rng(0).integers(0, 255, (40, 56, 3), dtype=np.uint8))


def test_objects_do_not_know_of_each_other(predictor, image):
    boxes = [[3, 4, 20, 30], [10, 10, 50, 39], [0, 0, 56, 40]]
    together = predictor.segment(image, box=boxes)
    assert together.masks.shape == (3, 3, 40, 56) and together.low_res.shape == (3, 3, SIDE, SIDE)
    for number, box in enumerate(boxes):
        alone = predictor.segment(image, box=box)
        assert np.allclose(alone.low_res[0], together.low_res[number], atol=1e-4)
        assert np.allclose(alone.iou[0], together.iou[number], atol=1e-5)
    assert not np.allclose(together.low_res[0], together.low_res[1], atol=0.1)


def test_one_mask_is_one_of_four(predictor, image):
    three = predictor.segment(image, points=[[8, 9]], labels=[1])
    one = predictor.segment(image, points=[[8, 9]], labels=[1], multimask=False)
    assert one.masks.shape == (1, 1, 40, 56) and one.presence.shape == (1,)
    best = three.low_res[0, three.iou[0].argmax()]
    stable = not np.allclose(one.low_res[0, 0], best, atol=1e-4)
    single = one.low_res[0, 0]
    assert ((single > 0.05).sum() >= 0.98 * (single > -0.05).sum()) if stable else one.iou[0, 0] == pytest.approx(three.iou.max(), abs=1e-5)


def test_an_answer_can_be_given_back(predictor, image):
    first = predictor.segment(image, points=[[8, 9]], labels=[1])
    again = predictor.segment(image, points=[[8, 9]], labels=[1], mask_input=first.low_res[0, 0])
    assert np.abs(first.low_res).max() <= 32 and not np.allclose(first.low_res, again.low_res, atol=0.1)


def test_an_image_is_read_where_it_was_not_encoded(predictor, image):
    picture = np.random.default_rng(0).integers(0, 255, (40, 56, 3), dtype=np.uint8)
    ours, theirs = (predictor.segment(seen, box=[3, 4, 20, 30]) for seen in (picture, image))
    assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


WRONG = {
    "nothing": ({}, "prompts of no objects: expected points, boxes or masks"),
    "points alone": ({"points": [[1, 2]]}, "points alone: give points and labels together"),
    "labels alone": ({"labels": [1]}, "labels alone"),
    "too few labels": ({"points": [[1, 2], [3, 4]], "labels": [1]}, r"labels \[1, 1\] of points \[1, 2, 2\]"),
    "another label": ({"points": [[1, 2]], "labels": [5]}, "1 on the object, 0 beside it"),
    "a point of three": ({"points": [[1, 2, 3]], "labels": [1]}, r"points is \[1, 1, 3\]: expected finite numbers \[P, 2\]"),
    "a box of five": ({"box": [1, 2, 3, 4, 5]}, r"box is \[1, 5\]: expected finite numbers \[4\]"),
    "no number": ({"box": [0, 0, np.nan, 4]}, "box is not finite"),
    "words": ({"box": "left"}, "box is no array of numbers"),
    "another mask": ({"mask_input": np.zeros((8, 8))}, r"mask_input is \[1, 8, 8\]: expected finite numbers \[16, 16\]"),
    "other objects": ({"box": np.zeros((3, 4)), "mask_input": np.zeros((2, 16, 16))}, "prompts of 2 and 3 objects"),
    "too many points": ({"points": np.zeros((2000, 2)), "labels": np.ones(2000)}, "2000 points of a prompt, expected 0 to 1024"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_prompts_that_mean_nothing_get_one_clear_line(predictor, image, fault):
    given, message = WRONG[fault]
    with pytest.raises(UserError, match=message) as caught:
        predictor.segment(image, **given)
    assert "\n" not in str(caught.value)


def test_a_clip_is_no_image(predictor):
    with pytest.raises(UserError, match="2 frames, expected one image"):
        predictor.encode(np.zeros((2, 32, 32, 3), np.uint8))
