"""Masks in COCO's encodings from files that mean harm or were damaged."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco

from unipixel_jax.data.masks import Shape, Shapes, TrackFile, Tracks
from unipixel_jax.data.regions import decode_region, decode_regions
from unipixel_jax.errors import UserError
from unipixel_jax.processing.rle import encode_mask

CASES = Path(__file__).parents[1] / "cases"
SIZE = (48, 64)
FULL = {"size": [48, 64], "counts": [0, 48 * 64]}


def read(region, size=SIZE, polygon_size=None):
    return Tracks((([region],),), polygon_size).read([0], size)[0, 0]


@given(st.lists(st.lists(st.floats(-100, 160), min_size=6, max_size=12), min_size=1, max_size=3))
def test_polygons_are_those_of_pycocotools(polygons):
    expected = coco.decode(coco.merge(coco.frPyObjects([p[: len(p) // 2 * 2] for p in polygons], *SIZE)))
    np.testing.assert_array_equal(read(polygons), expected)


@pytest.mark.parametrize("name", ["C_poly_1e8", "C_poly_1e9", "C_poly_nan", "C_rle_size_wrap", "C_rle_text_size_big"])
def test_regions_that_crashed_pycocotools(name):
    with pytest.raises(UserError, match="the annotation has a mask that is not in one of COCO's encodings") as caught:
        read(json.loads((CASES / "coco_segfault" / f"{name}.json").read_text()))
    assert "\n" not in str(caught.value)


FAR = "expected corners near its image of 64x48 pixels"
NUMBERS = "expected numbers x0, y0, x1, y1"


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([0, 0, float("inf"), 0, 5, 5], FAR),
        ([0, 0, -1e9, 0, 5, 5], FAR),
        ([0, 0, 1e300, 0, 5, 5], FAR),
        ([0, 0, float("nan"), float("nan"), 5, 5], FAR),
        ([0, 0, 2**62, 0, 5, 5], FAR),
        ([0, 0, 10**400, 0, 5, 5], NUMBERS),
        (["0", "0", "9", "0", "5", "5"], NUMBERS),
        ([True, False, True, True, False, False], NUMBERS),
        ([None] * 6, NUMBERS),
        ([[0, 0], [1]], NUMBERS),
        ([], NUMBERS),
        (7j, NUMBERS),
    ],
)
def test_polygons_that_lead_nowhere(points, message):
    with pytest.raises(UserError, match=message):
        read([points])
    with pytest.raises(UserError, match=message):
        Shapes((Shape(points, True),)).read([0], SIZE)


@pytest.mark.parametrize("region", ["text", b"bytes", 7, True, [], [[]], [[1, 2, 3, 4]], [[1, 2, 3, 4, 5]], {}, {"counts": "0"}])
def test_what_is_no_region(region):
    with pytest.raises(UserError, match="not in one of COCO's encodings"):
        read(region)


def test_polygons_of_an_image_without_a_size():
    for size in (("48", "64"), (0, 64), (1 << 20, 1 << 20), (48.0, 64.0)):
        with pytest.raises(UserError, match="the size"):
            read([[0, 0, 9, 0, 5, 5]], polygon_size=size)


def test_swapped_sides_are_told_from_another_size():
    turned = encode_mask(np.ones(SIZE[::-1], bool))
    with pytest.raises(UserError, match=r"a mask of the size \[64, 48\], expected \[48, 64\] \(height, width\): its sides are swapped"):
        read(turned)
    assert read(encode_mask(np.ones((24, 32), bool))).all()
    assert read(encode_mask(np.ones((24, 24), bool)), (24, 24)).all()


def test_long_outlines_are_refused():
    zigzag = [[i % 4000, 4000 * (i % 2)] for i in range(1100)]
    with pytest.raises(UserError, match=r"polygons with outlines of 4.* pixels, expected at most 4194304"):
        read([np.ravel(zigzag).tolist()], (4000, 4000))
    with pytest.raises(UserError, match="polygons with outlines of"):
        Shapes((Shape(zigzag, True),)).read([0], (4000, 4000))


def test_many_objects_are_refused_before_there_is_memory_for_them(tmp_path):
    path = tmp_path / "0.json"
    path.write_text(json.dumps([[[]]] * 10000))
    with pytest.raises(UserError, match="10000 masks on 1 frames of 854x480 pixels, expected at most 1073741824 pixels"):
        TrackFile(str(path)).read([0], (480, 854))
    with pytest.raises(UserError, match="1000 masks on 1 frames"):
        Shapes((Shape([[0, 0], [5, 5], [0, 5]], True),) * 1000).read([0], (4000, 4000))


def test_many_masks_for_one_frame_are_refused(monkeypatch):
    monkeypatch.setattr("unipixel_jax.data.regions._MAX_WORK", 10 * SIZE[0] * SIZE[1])
    assert decode_regions([[[FULL] * 5]], SIZE, None, "x").all()
    with pytest.raises(UserError, match="x has too many masks for one sample"):
        decode_regions([[[FULL] * 6]], SIZE, None, "x")
    with pytest.raises(UserError, match="x has too many masks for one sample"):
        decode_regions([[[[[0, 0, 60, 0, 30, 30]]] * 5]], SIZE, None, "x")
    with pytest.raises(UserError, match="x has too many masks for one sample"):
        decode_regions([[[{"size": [24, 32], "counts": [0, 768]}] * 5]], SIZE, None, "x")


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8), lambda x: st.lists(x, max_size=7), max_leaves=20))
def test_any_json_is_a_mask_or_refused(value):
    for region in (value, {"size": [5, 7], "counts": value}, {"size": value, "counts": [35]}):
        try:
            assert decode_region(region, (5, 7))[0].dtype == bool
        except UserError as error:
            assert str(error)
