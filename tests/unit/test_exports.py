"""Masks in the formats of other tools, read back by their own libraries."""

import json
import sys

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw
from pycocotools.coco import COCO

from unipixel_jax.errors import UserError
from unipixel_jax.infer.exports import EXPORTS, davis_palette, label_image, labels_of, polygons
from unipixel_jax.infer.prediction import FrameResult

HEIGHT, WIDTH = 90, 130
LABELS = {1: 'the "round" thing: 圆', 2: "a ring", 3: "dots"}


def disc(x, y, radius):
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def results():
    """Three frames: a disc that moves; a ring, which has a hole, and is gone on the last frame; one object of a pixel, a line and a rectangle at the border."""
    for frame in range(3):
        dots = np.zeros((HEIGHT, WIDTH), bool)
        dots[3, 5] = dots[70, 10:30] = True
        dots[80:, 100:] = True
        ring = disc(90, 40, 25) & ~disc(90, 40, 4) if frame < 2 else np.zeros_like(dots)
        masks = np.stack([disc(40 + 20 * frame, 45, 22), ring, dots])
        scores = np.array([0.5 + 0.2 * frame, 0.6, 0.9], np.float32)
        pixels = np.random.default_rng(frame).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        yield FrameResult(7 + frame, frame / 10, pixels, (1, 2, 3), masks, scores, scores)


def written(kind, folder):
    export = EXPORTS[kind](folder)
    export.start(LABELS)
    for result in results():
        export.add(result)
    export.finish()
    return folder


def test_coco_is_read_by_pycocotools(tmp_path, capsys):
    folder = written("coco", tmp_path / "clip-coco")
    coco = COCO(str(folder / "annotations.json"))
    assert {category["id"]: category["name"] for category in coco.loadCats(coco.getCatIds())} == LABELS
    for image, result in zip(coco.loadImgs(sorted(coco.getImgIds())), results(), strict=True):
        assert image["frame"] == result.frame
        with Image.open(folder / "images" / image["file_name"]) as shown:
            assert shown.size == (WIDTH, HEIGHT) == (image["width"], image["height"])
        found = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
        assert [item["category_id"] for item in found] == [number for number, mask in zip(result.objects, result.masks, strict=True) if mask.any()]
        for item in found:
            mask = result.masks[item["category_id"] - 1]
            np.testing.assert_array_equal(coco.annToMask(item).astype(bool), mask)
            assert item["area"] == np.count_nonzero(mask) and item["bbox"] == result.boxes[item["category_id"] - 1]
            assert item["score"] == pytest.approx(result.scores[item["category_id"] - 1], abs=1e-6)
    ids = coco.getAnnIds()
    assert len(set(ids)) == len(ids) == 8 and 0 not in ids


def test_yolo_is_read_as_ultralytics_reads_it(tmp_path):
    folder = written("yolo", tmp_path / "clip-yolo")
    data = yaml.safe_load((folder / "data.yaml").read_text(encoding="utf-8"))
    assert data["names"] == {number - 1: name for number, name in LABELS.items()} and (folder / data["train"]).is_dir() and (folder / data["val"]).is_dir()
    for result in results():
        assert (folder / "images" / f"{result.frame:06d}.jpg").is_file()
        rows = [line.split() for line in (folder / "labels" / f"{result.frame:06d}.txt").read_text().splitlines()]
        drawn = np.zeros((3, HEIGHT, WIDTH), np.uint8)
        for row in rows:
            shares = np.array(row[1:], np.float64).reshape(-1, 2)
            assert len(shares) >= 3 and 0 <= shares.min() <= shares.max() <= 1
            # The cut to whole pixels and the filling are those of Ultralytics' `polygon2mask`.
            cv2.fillPoly(drawn[int(row[0])], [(shares * (WIDTH, HEIGHT)).astype(np.int32)], 1)
        np.testing.assert_array_equal(drawn[[0, 2]].astype(bool), result.masks[[0, 2]])
        filled = disc(90, 40, 25) if result.frame < 9 else np.zeros((HEIGHT, WIDTH), bool)
        np.testing.assert_array_equal(drawn[1].astype(bool), filled)


def test_labelme_holds_what_its_reader_asks_for(tmp_path):
    """labelme's `LabelFile.load` needs these keys, and opens the image at `imagePath` where `imageData` is null. Its `shape_to_mask` draws with Pillow."""
    folder = written("labelme", tmp_path / "clip-labelme")
    for result in results():
        found = json.loads((folder / f"{result.frame:06d}.json").read_text(encoding="utf-8"))
        assert set(found) == {"version", "flags", "shapes", "imagePath", "imageData", "imageHeight", "imageWidth"} and found["imageData"] is None
        with Image.open(folder / found["imagePath"]) as shown:
            assert shown.size == (found["imageWidth"], found["imageHeight"]) == (WIDTH, HEIGHT)
        for number in (1, 3):
            drawn = Image.new("1", (WIDTH, HEIGHT))
            for shape in found["shapes"]:
                assert set(shape) == {"label", "points", "group_id", "shape_type", "flags", "description"} and shape["shape_type"] == "polygon"
                assert shape["label"] == LABELS[shape["group_id"]] and len(shape["points"]) >= 3
                if shape["group_id"] == number:
                    ImageDraw.Draw(drawn).polygon([tuple(point) for point in shape["points"]], outline=1, fill=1)
            np.testing.assert_array_equal(np.asarray(drawn), result.masks[number - 1])


def test_label_images_have_the_numbers_as_indices(tmp_path):
    folder = written("png", tmp_path / "clip-png")
    for result in results():
        with Image.open(folder / f"{result.frame:06d}.png") as image:
            assert image.mode == "P" and image.getpalette() == davis_palette()
            indices = np.asarray(image)
        disc_wins = result.frame > 7
        first, second, third = result.masks
        np.testing.assert_array_equal(indices == 3, third)
        np.testing.assert_array_equal(indices == 1, first & ~third & ~(second & (not disc_wins)))
        np.testing.assert_array_equal(indices == 2, second & ~third & ~(first & disc_wins))


def test_the_palette_is_that_of_davis():
    """Source: the palette of DAVIS 2017's annotations."""
    colours = np.reshape(davis_palette(), (256, 3)).tolist()
    assert colours[:4] == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]] and colours[8:12] == [[64, 0, 0], [191, 0, 0], [64, 128, 0], [191, 128, 0]]
    assert colours[15] == [191, 128, 128] and colours[16:22] == [[0, 64, 0], [128, 64, 0], [0, 191, 0], [128, 191, 0], [0, 64, 128], [128, 64, 128]]
    assert colours[22] == [22, 22, 22] and colours[255] == [255, 255, 255]


def test_equal_scores_leave_the_pixel_to_the_lower_number_and_256_objects_are_too_many():
    masks = np.ones((2, 2, 3), bool)
    assert (label_image(masks, np.array([0.5, 0.5], np.float32), (1, 2)) == 1).all()
    with pytest.raises(UserError, match="up to number 255, this one is 256"):
        label_image(masks, np.array([0.5, 0.5], np.float32), (1, 256))


@pytest.mark.parametrize("kind", EXPORTS)
def test_a_clip_that_fails_before_its_first_frame_leaves_nothing(kind, tmp_path):
    export = EXPORTS[kind](tmp_path / "clip")
    export.start(LABELS)
    export.finish()
    assert list(tmp_path.iterdir()) == []


def test_an_empty_mask_has_no_polygons():
    assert polygons(np.zeros((4, 5), bool)) == []


def test_objects_are_named_after_their_prompts():
    assert labels_of(["the dog", "all\n cats", "the dog"], [0, 1, 1, 2]) == {1: "the dog #1", 2: "all cats #2", 3: "all cats #3", 4: "the dog #4"}
    assert labels_of(["the dog", "the cat"], [1, 0]) == {1: "the cat", 2: "the dog"}


@pytest.mark.parametrize("kind", EXPORTS)
def test_what_lies_there_is_not_replaced_unless_the_run_goes_on(kind, tmp_path):
    (tmp_path / "there").mkdir()
    EXPORTS[kind](tmp_path / "there")
    (tmp_path / "there" / "000007.json").write_text("mended by hand")
    with pytest.raises(UserError, match="holds files already"):
        EXPORTS[kind](tmp_path / "there")
    assert EXPORTS[kind](tmp_path / "there", resume=True).folder == tmp_path / "there"


@pytest.mark.parametrize(("kind", "package"), [("coco", "pycocotools.mask"), ("yolo", "cv2"), ("labelme", "cv2")])
def test_a_missing_package_is_named_with_its_extra(kind, package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"--format {kind} needs {package}: run pip install 'unipixel-jax\[export\]'"):
        EXPORTS[kind](tmp_path / "new")
