"""Masks in image files, and points and boxes as a command's arguments give them."""

import numpy as np
import pytest
from PIL import Image

from unipixel_jax.errors import UserError
from unipixel_jax.infer.pointing import check_references, read_references
from unipixel_jax.processing.mask_files import read_masks
from unipixel_jax.processing.prompts import Box, Point

SIZE = (6, 9)


def marked(value, dtype=np.uint8):
    out = np.zeros(SIZE, dtype)
    out[1:4, 2:7] = value
    return out


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("grey.png", marked(255)), ("one.png", marked(1)), ("deep.png", marked(300, np.uint16)), ("bits.png", marked(1).astype(bool)),
        ("colour.png", np.stack([marked(0), marked(9), marked(0)], 2)), ("float.tiff", marked(0.5, np.float32)),
    ],
)  # fmt: skip
def test_what_is_not_black_is_one_object(name, array, tmp_path):
    Image.fromarray(array).save(tmp_path / name)
    (mask,) = read_masks(tmp_path / name, SIZE)
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, marked(1).astype(bool))


def test_what_is_transparent_is_no_object(tmp_path):
    white = np.full((*SIZE, 3), 255, np.uint8)
    Image.fromarray(np.concatenate([white, marked(255)[..., None]], 2)).save(tmp_path / "cut.png")
    np.testing.assert_array_equal(read_masks(tmp_path / "cut.png", SIZE), [marked(1).astype(bool)])


def test_each_index_of_a_palette_is_an_object(tmp_path):
    labels = marked(7)
    labels[5] = 3
    image = Image.fromarray(labels)
    image.putpalette([9, 9, 9] * 256)
    image.save(tmp_path / "labels.png")
    np.testing.assert_array_equal(read_masks(tmp_path / "labels.png", SIZE), [labels == 3, labels == 7])


def test_wrong_masks_are_refused(tmp_path):
    Image.fromarray(marked(1)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a.png is 9x6 pixels, the media 6x9: make both the same size"):
        read_masks(tmp_path / "a.png", SIZE[::-1])
    Image.fromarray(marked(0)).save(tmp_path / "black.png")
    palette = Image.fromarray(marked(0))
    palette.putpalette([255] * 768)
    palette.save(tmp_path / "index0.png")
    for name in ("black.png", "index0.png"):
        with pytest.raises(UserError, match="marks nothing"):
            read_masks(tmp_path / name, SIZE)
    Image.fromarray(marked(1)).save(tmp_path / "a.jpg")
    with pytest.raises(UserError, match="expected PNG"):
        read_masks(tmp_path / "a.jpg", SIZE)


def test_references_come_in_their_order_with_their_frames(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(marked(1)).save("a.png")
    Image.fromarray(marked(1)).save("b,2.png")
    (tmp_path / "b,2.png").rename("c,2")
    given = [(4, "1,2,3,4,5"), (2, "7,8"), (0, "a.png,3"), (0, "c,2")]
    box, point, later, whole_name = read_references(given, SIZE)
    assert (box, point, later.frame, whole_name.frame) == (Box(1, 2, 3, 4, 5), Point(7, 8), 3, 0)
    np.testing.assert_array_equal(later.array, marked(1).astype(bool))


@pytest.mark.parametrize(
    ("given", "words"),
    [([], "nothing is pointed at"), ([(0, "a.png"), (2, "1,2")], "masks only"), ([(2, "1")], "expected 2 numbers"), ([(4, "a")], "expected 4")],
)
def test_references_that_cannot_be(given, words):
    with pytest.raises(UserError, match=words):
        check_references(given)
