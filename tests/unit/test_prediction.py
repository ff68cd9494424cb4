"""Answers, their files, and COCO's run lengths."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from unipixel_jax.core.files import replacing
from unipixel_jax.errors import UserError
from unipixel_jax.infer.prediction import Prediction, SegmentedObject
from unipixel_jax.processing.rle import decode_mask, encode_mask


def answer():
    masks = np.zeros((2, 5, 6), bool)
    masks[0, 1:3, 2:5] = True
    return Prediction("a <|seg|>.", [1, 506, 2], [SegmentedObject(masks, np.array([0.5, 0.25], np.float32), (2, 9))], (0, 7), masks.shape[1:])


@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40)))
def test_run_lengths_come_back(mask):
    encoded = encode_mask(mask)
    assert encoded["size"] == list(mask.shape)
    np.testing.assert_array_equal(decode_mask(encoded), mask)


@pytest.mark.parametrize(
    ("mask", "counts"),
    [  # as pycocotools 2.0.11 writes them
        (np.zeros((3, 4), bool), "<"),
        (np.ones((3, 4), bool), "0<"),
        (np.eye(4, dtype=bool), "01400000"),
        (np.pad(np.ones((2, 3), bool), ((500, 0), (0, 0))), "d?2d?000"),
        (np.tri(40, 3, -7, dtype=bool), "7Q18O1O"),
    ],
)
def test_run_lengths_are_those_of_pycocotools(mask, counts):
    assert encode_mask(mask)["counts"] == counts
    np.testing.assert_array_equal(decode_mask(encode_mask(mask)), mask)


@settings(max_examples=20)
@given(st.integers(0, 2**20))
def test_long_runs_come_back(run):
    mask = np.zeros((1024, 1025), bool)
    mask.T.reshape(-1)[run:] = True
    np.testing.assert_array_equal(decode_mask(encode_mask(np.asfortranarray(mask))), mask)


def test_json_has_boxes_areas_and_masks(tmp_path):
    answer().save_json(tmp_path / "a" / "answer.json")
    found = json.loads((tmp_path / "a" / "answer.json").read_text())
    assert found["text"] == "a <|seg|>." and found["tokens"] == [1, 506, 2] and found["frames"] == [0, 7]
    (item,) = found["objects"]
    assert item["number"] == 1 and item["span"] == [2, 9] and item["scores"] == [0.5, 0.25]
    assert item["boxes"] == [[2, 1, 3, 2], None] and item["areas"] == [6, 0]
    np.testing.assert_array_equal([decode_mask(mask) for mask in item["masks"]], answer().objects[0].masks)


def test_masks_file(tmp_path):
    answer().save_masks(tmp_path / "m.npz")
    with np.load(tmp_path / "m.npz") as found:
        assert found["masks"].shape == (1, 2, 5, 6) and found["masks"].dtype == bool
        np.testing.assert_array_equal(found["masks"][0], answer().objects[0].masks)
        assert found["scores"].tolist() == [[0.5, 0.25]] and found["frames"].tolist() == [0, 7]
    Prediction("nothing", [], [], [0], (4, 6)).save_masks(tmp_path / "none.npz")
    with np.load(tmp_path / "none.npz") as found:
        assert found["masks"].shape == (0, 1, 4, 6)


def test_an_interrupted_file_leaves_the_old_one(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as aside:
        aside.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_an_unwritable_place_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"answer.json cannot be written \(.*\): choose another place"):
        answer().save_json(tmp_path / "file" / "answer.json")
