"""COCO's run lengths, the same as pycocotools' where they are whole, and refused where they are not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from unipixel_jax.errors import UserError
from unipixel_jax.processing.rle import decode_mask, encode_mask

MASKS = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40))


@given(MASKS)
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


@given(MASKS)
def test_pycocotools_writes_and_reads_the_same(mask):
    coco = pytest.importorskip("pycocotools.mask")
    theirs = coco.encode(np.asfortranarray(mask.view(np.uint8)))
    assert encode_mask(mask) == {"size": list(theirs["size"]), "counts": theirs["counts"].decode()}
    np.testing.assert_array_equal(decode_mask(theirs), mask)
    np.testing.assert_array_equal(coco.decode(encode_mask(mask)), mask)


@given(MASKS)
def test_lists_of_lengths(mask):
    coco = pytest.importorskip("pycocotools.mask")
    flat = np.concatenate([[False], mask.T.ravel()])
    runs = {"size": list(mask.shape), "counts": np.diff([0, *np.flatnonzero(flat[1:] != flat[:-1]), mask.size]).tolist()}
    np.testing.assert_array_equal(decode_mask(runs), mask)
    np.testing.assert_array_equal(decode_mask(runs), coco.decode(coco.frPyObjects(runs, *mask.shape)))


EYE = encode_mask(np.eye(40, dtype=bool))["counts"]


@pytest.mark.parametrize(
    ("size", "counts", "message"),
    [
        ([112, 160], [100, 50], r"run lengths for 150 pixels, expected 17920 for the size \[112, 160\]"),
        ([112, 160], [17919, 2], "run lengths for 17921 pixels, expected 17920"),
        ([112, 160], [], "the counts '\\[\\]', expected text, or a list of whole numbers"),
        ([112, 160], [17921, -1], "a run of 17921 pixels, expected 0 to 17920"),
        ([112, 160], [-1, 17921], "a run of -1 pixels"),
        ([112, 160], [2**63, 1], "a list of whole numbers"),
        ([112, 160], [2**64 - 1, 2**64 - 1], "a run of -1 pixels"),
        ([112, 160], [10**30], "a list of whole numbers"),
        ([112, 160], [1e4, 7920.0], "a list of whole numbers"),
        ([112, 160], ["17920"], "a list of whole numbers"),
        ([112, 160], [[1, 2], [3]], "a list of whole numbers"),
        ([112, 160], None, "the counts 'None', expected text"),
        ([40, 40], EYE[:-1], "run lengths for 1599 pixels, expected 1600|characters that are no run lengths or were cut off"),
        ([40, 40], EYE[: len(EYE) // 2], "run lengths for .* pixels, expected 1600"),
        ([40, 40], "P", "were cut off"),
        ([40, 40], "", "counts of 0 characters"),
        ([40, 40], "~~~~", "no run lengths"),
        ([40, 40], "\u2028", "no run lengths"),
        ([40, 40], b"\xff\x00", "no run lengths"),
        ([40, 40], "PPPPPPPPP0", "a run length of 10 characters, expected at most 7"),
        ([40, 40], "0" * ((1 << 24) + 1), "counts of 16777217 characters"),
        ([40, 41], EYE, "run lengths for 1600 pixels, expected 1640"),
        ([65536, 65537], "0PPPPP", "expected at most 89478485 pixels"),
        ([200000, 200000], "PPYo0", "expected at most 89478485 pixels"),
        ([0, 40], [], r"the size '\[0, 40\]', expected \[height, width\] in whole pixels"),
        ([-40, -40], [1600], "in whole pixels"),
        ([True, 1], [1], "in whole pixels"),
        ([40.0, 40], [1600], "in whole pixels"),
        (["40", "40"], [1600], "in whole pixels"),
        ([40], [40], "in whole pixels"),
        ("44", [16], "in whole pixels"),
        (None, [16], "in whole pixels"),
    ],
)
def test_what_does_not_fill_its_mask_is_refused(size, counts, message):
    with pytest.raises(UserError, match=message):
        decode_mask({"size": size, "counts": counts})


@given(MASKS, st.data())
def test_texts_that_were_cut_off_are_refused(mask, data):
    encoded = encode_mask(mask)
    encoded["counts"] = encoded["counts"][: data.draw(st.integers(0, len(encoded["counts"]) - 1))]
    with pytest.raises(UserError, match=r"run lengths for|a run of|cut off"):
        decode_mask(encoded)


@given(st.integers(1, 9), st.integers(1, 9), st.binary(max_size=30))
def test_any_bytes_are_a_whole_mask_or_refused(height, width, counts):
    try:
        assert decode_mask({"size": [height, width], "counts": counts}).shape == (height, width)
    except UserError as error:
        assert "\n" not in str(error)
