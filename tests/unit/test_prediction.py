"""Answers and their files."""

import json

import numpy as np
import pytest

from unipixel_jax.core.files import replacing
from unipixel_jax.errors import UserError
from unipixel_jax.infer.prediction import Prediction, SegmentedObject
from unipixel_jax.processing.rle import decode_mask


def answer():
    masks = np.zeros((2, 5, 6), bool)
    masks[0, 1:3, 2:5] = True
    item = SegmentedObject.from_masks(masks, np.array([0.5, 0.25], np.float32), np.array([0.75, 0.5], np.float32), (2, 9))
    return Prediction("a <|seg|>.", [1, 506, 2], [item], (0, 7), masks.shape[1:])


def test_json_has_boxes_areas_and_masks(tmp_path):
    answer().save_json(tmp_path / "a" / "answer.json")
    found = json.loads((tmp_path / "a" / "answer.json").read_text())
    assert found["text"] == "a <|seg|>." and found["tokens"] == [1, 506, 2] and found["frames"] == [0, 7]
    (item,) = found["objects"]
    assert item["number"] == 1 and item["span"] == [2, 9] and item["scores"] == [0.5, 0.25] and item["presence"] == [0.75, 0.5]
    assert found["found"] and not Prediction("nothing", [], [], [0], (4, 6)).found
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
