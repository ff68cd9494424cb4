"""Readers of masks in every encoding, and polygons."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco

from unipixel_jax.data.frames import resize_masks
from unipixel_jax.data.masks import LabelClasses, LabelImages, Masklet, ObjectTrackFiles, OnOneFrame, Shape, Shapes, TrackFile, Tracks
from unipixel_jax.data.polygons import polygon_mask
from unipixel_jax.errors import UserError

SIZE = (12, 20)


def blob(rng, size=SIZE):
    mask = np.zeros(size, bool)
    y, x = rng.integers(0, size[0] - 4), rng.integers(0, size[1] - 6)
    mask[y : y + 4, x : x + 6] = True
    return mask


def compressed(mask):
    encoded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def uncompressed(mask):
    flat = np.concatenate([[False], mask.T.ravel()])
    return {"size": list(mask.shape), "counts": np.diff([0, *np.flatnonzero(flat[1:] != flat[:-1]), mask.size]).tolist()}


def write(path, labels):
    Image.fromarray(labels).save(path)
    return str(path)


def test_label_images(tmp_path, rng):
    labels = rng.integers(0, 5, (3, *SIZE)).astype(np.uint8)
    paths = tuple(write(tmp_path / f"{i}.png", label) for i, label in enumerate(labels))
    masks = LabelImages((*paths, None), ((1,), (2, 4))).read([2, 3, 0], SIZE)
    assert (masks[0, [0, 2]] == (labels[[2, 0]] == 1)).all() and (masks[1, [0, 2]] == np.isin(labels[[2, 0]], [2, 4])).all()
    assert not masks[:, 1].any()


def test_numbers_that_no_image_has_are_nowhere(tmp_path):
    path = write(tmp_path / "l.png", np.ones(SIZE, np.uint8))
    masks = LabelImages((path,), ((1, 10**30), (10**30,))).read([0], SIZE)
    assert masks[0].all() and not masks[1].any()


def test_label_images_with_palettes_count_by_number(tmp_path, rng):
    labels = rng.integers(0, 9, SIZE).astype(np.uint8)
    image = Image.fromarray(labels, "P")
    image.putpalette(bytes(768))
    image.save(tmp_path / "p.png")
    assert (LabelImages((str(tmp_path / "p.png"),), ((7,),)).read([0], SIZE)[0, 0] == (labels == 7)).all()


@pytest.mark.parametrize("encode", [compressed, uncompressed, lambda m: {**compressed(m), "counts": compressed(m)["counts"].encode()}])
def test_tracks(encode, rng):
    blobs = [blob(rng) for _ in range(4)]
    one, two, three, four = map(encode, blobs)
    masks = Tracks((([one, None, two],), ([three, None, None], [four, three, None]))).read([0, 1, 2], SIZE)
    assert (masks[0, 0] == blobs[0]).all() and (masks[0, 2] == blobs[1]).all() and not masks[0, 1].any()
    assert (masks[1, 0] == blobs[2] | blobs[3]).all() and (masks[1, 1] == blobs[2]).all() and not masks[1, 2].any()


def test_polygons_and_their_size():
    square = [2.0, 2.0, 8.0, 2.0, 8.0, 8.0, 2.0, 8.0]
    other = [12, 2, 16, 2, 16, 6, 12, 6]
    mask = Tracks((([[square, other]],),)).read([0], SIZE)[0, 0]
    assert mask[2:8, 2:8].all() and mask[2:6, 12:16].all() and mask.sum() == 36 + 16
    large = Tracks((([[square, other]],),), SIZE).read([0], (24, 40))[0, 0]
    assert (large == resize_masks(mask, 24, 40)).all() and large[4:16, 4:16].all()


def test_masks_of_another_size_are_resized(rng):
    mask = blob(rng)
    small = Tracks((([compressed(mask)],),)).read([0], (6, 10))[0, 0]
    assert (small == resize_masks(mask, 6, 10)).all() and small.sum() >= mask.sum() / 4


def test_files_of_tracks(tmp_path, rng):
    blobs = [blob(rng) for _ in range(3)]
    a, b, c = map(compressed, blobs)
    (tmp_path / "all.json").write_text(json.dumps([[[a], [None]], [[b, c], [a]]]))
    masks = TrackFile(str(tmp_path / "all.json")).read([1, 0], SIZE)
    assert not masks[0, 0].any() and (masks[0, 1] == blobs[0]).all() and (masks[1] == [blobs[0], blobs[1] | blobs[2]]).all()
    (tmp_path / "one.json").write_text(json.dumps([[a, b], [None]]))
    masks = ObjectTrackFiles((str(tmp_path / "one.json"),)).read([1, 0], SIZE)
    assert masks.shape == (1, 2, *SIZE) and not masks[0, 0].any() and (masks[0, 1] == blobs[0] | blobs[1]).all()
    (tmp_path / "sav.json").write_text(json.dumps({"masklet": [[a, b], [b, c]]}))
    assert (Masklet(str(tmp_path / "sav.json"), 1).read([1, 0], SIZE)[0] == [blobs[2], blobs[1]]).all()


def test_masks_on_one_frame(rng):
    mask = blob(rng)
    masks = OnOneFrame(Tracks((([compressed(mask)],),)), 7).read([3, 7, 9], SIZE)
    assert (masks[0, 1] == mask).all() and not masks[0, [0, 2]].any()


def test_shapes_are_painted_from_large_to_small():
    def square(low, high, target):
        return Shape([[low, low], [high, low], [high, high], [low, high]], target)

    mask = Shapes((square(4, 5, True), square(2, 7, False), square(0, 9, True))).read([0], SIZE)[0, 0]
    assert mask.sum() == 100 - 36 + 4 and mask[4, 4] and not mask[3, 3] and mask[1, 1]


def test_classes_become_turns(tmp_path):
    labels = np.zeros(SIZE, np.uint8)
    labels[2:4], labels[6:8], labels[9] = 2, 1, 255
    classes = LabelClasses(write(tmp_path / "l.png", labels), ("nothing", "cup", "dish"), frozenset({0, 255}))
    assert [t.text for t in classes.turns()] == ["cup", "dish"]
    assert (classes.read([0], SIZE)[:, 0] == [labels == 1, labels == 2]).all()
    with pytest.raises(UserError, match="has class 2, expected numbers from 0 to 1"):
        LabelClasses(classes.path, classes.names[:2], classes.ignored).turns()
    with pytest.raises(UserError, match="has class -1, expected numbers from 0 to 2"):
        Image.fromarray(np.where(labels == 255, 0, labels).astype(np.int32) - 1).save(tmp_path / "l.tiff")
        LabelClasses(str(tmp_path / "l.tiff"), classes.names, classes.ignored).turns()
    with pytest.raises(UserError, match="no class to segment"):
        LabelClasses(classes.path, classes.names, frozenset({0, 1, 2, 255})).turns()


@pytest.mark.parametrize(
    ("points", "rows"),
    [  # drawn by cv2.polylines and cv2.fillPoly of OpenCV 5.0.0
        ([[2, 1], [12, 4], [5, 9]], "..##............ ..######........ ...########..... ...##########... ...#########.... ....######...... ....#####"),
        ([[1, 1], [12, 9], [12, 1], [1, 9]], ".#..........#... .###......###... .####....####... .#####..#####... .############... .#####..#####..."),
        ([[1, 1], [14, 1], [2, 9], [8, 0], [13, 9]], ".##############. ..######.#####.. ....###...##.... .....##..##..... .....#######.... ....########"),
    ],
)
def test_polygons_are_drawn_as_opencv_does(points, rows):
    mask = polygon_mask(points, 11, 16)
    drawn = " ".join("".join(".#"[int(v)] for v in row) for row in mask[1:])
    assert drawn.startswith(rows)


@pytest.mark.parametrize(
    ("points", "rows"),
    [  # drawn in the same way; each line is a row
        (
            [[-4, 3], [12, -3], [19, 14]],
            """....##########..
               ..############..
               ###############.
               ###############.
               ################
               .###############
               ...#############
               .....###########
               .......#########
               .........#######
               ...........#####""",
        ),
        (
            [[8, 2], [40, 30], [-9, 12]],
            """................
               ................
               ........#.......
               ......####......
               .....######.....
               ...##########...
               .#############..
               ###############.
               ################
               ################
               ################""",
        ),
    ],
)
def test_edges_are_cut_at_the_borders_as_opencv_does(points, rows):
    assert ["".join(".#"[int(v)] for v in row) for row in polygon_mask(points, 11, 16)] == rows.split()


@given(st.lists(st.tuples(st.integers(-30, 60), st.integers(-30, 60)), min_size=1, max_size=8))
def test_polygons_may_lie_outside(points):
    mask = polygon_mask(points, 20, 30)
    for x, y in points:
        if 0 <= x < 30 and 0 <= y < 20:
            assert mask[y, x]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no image", "is no image of masks"),
        (None, "does not exist: expected an image file"),
    ],
)
def test_broken_label_images(tmp_path, content, message):
    path = tmp_path / "labels.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=f"labels.png {message}"):
        LabelImages((str(path),), ((1,),)).read([0], SIZE)


def test_label_images_must_fit(tmp_path):
    small, colour = write(tmp_path / "small.png", np.ones((5, 9), np.uint8)), write(tmp_path / "colour.png", np.ones((*SIZE, 3), np.uint8))
    with pytest.raises(UserError, match=r"small\.png is 9x5 pixels, expected 20x12 as the frame"):
        LabelImages((small,), ((1,),)).read([0], SIZE)
    with pytest.raises(UserError, match=r"colour\.png has 3 channels, expected one"):
        LabelImages((colour,), ((1,),)).read([0], SIZE)
    with pytest.raises(UserError, match="number 1 is wanted of 1 entries"):
        LabelImages((small,), ((1,),)).read([1], SIZE)


@pytest.mark.parametrize("region", [{"size": [12, 20]}, {"size": [9, 9], "counts": [1, 4000]}, {"size": [2, 2], "counts": "~~~~"}, 7, [], [[1, 2]], "x"])
def test_broken_regions(region):
    with pytest.raises(UserError, match="the annotation has a mask that is not in one of COCO's encodings"):
        Tracks((([region],),)).read([0], SIZE)


@pytest.mark.parametrize(
    ("content", "message"),
    [("[", "is not JSON"), ("[]", "holds no objects"), ("{}", "holds no objects"), ("[[]]", "number 0 is wanted of 0 entries"), ("[[5]]", "masks are a int")],
)
def test_broken_files_of_tracks(tmp_path, content, message):
    path = tmp_path / "tracks.json"
    path.write_text(content)
    with pytest.raises(UserError, match=rf"tracks\.json.*{message}"):
        TrackFile(str(path)).read([0], SIZE)
    path.write_text('{"other": 1}')
    with pytest.raises(UserError, match="has no masklet"):
        Masklet(str(path), 0).read([0], SIZE)
    with pytest.raises(UserError, match="does not exist"):
        TrackFile(str(tmp_path / "gone.json")).read([0], SIZE)
