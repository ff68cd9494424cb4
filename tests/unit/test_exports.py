"""Masks in the formats of other tools, read back by their own libraries."""

import base64
import io
import json
import sys
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
import yaml
from exported import HEIGHT, LABELS, WIDTH, decoded_brush, disc, results, written
from PIL import Image, ImageDraw
from pycocotools.coco import COCO

from unipixel_jax.errors import UserError
from unipixel_jax.infer.exports import EXPORTS, labels_of
from unipixel_jax.infer.exports.base import class_name, has_holes, polygons
from unipixel_jax.infer.exports.cvat import cvat_mask
from unipixel_jax.infer.exports.label_images import davis_palette, label_image
from unipixel_jax.infer.exports.label_studio import brush_mask, brush_runs


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
    """labelme's reader needs these keys, and opens the image at `imagePath` where `imageData` is null. It draws polygons with Pillow, and lays masks into their
    boxes, whose second corner is their last pixel. `tests/annotation/test_readers.py` reads the same with labelme itself.
    """
    folder = written("labelme", tmp_path / "clip-labelme")
    for result in results():
        found = json.loads((folder / f"{result.frame:06d}.json").read_text(encoding="utf-8"))
        assert set(found) == {"version", "flags", "shapes", "imagePath", "imageData", "imageHeight", "imageWidth"} and found["imageData"] is None
        with Image.open(folder / found["imagePath"]) as shown:
            assert shown.size == (found["imageWidth"], found["imageHeight"]) == (WIDTH, HEIGHT)
        drawn = np.zeros((3, HEIGHT, WIDTH), bool)
        for shape in found["shapes"]:
            assert set(shape) == {"label", "points", "group_id", "shape_type", "flags", "description", "mask"}
            assert shape["label"] == LABELS[shape["group_id"]]
            own = Image.new("1", (WIDTH, HEIGHT))
            if shape["shape_type"] == "mask":
                (left, top), (right, bottom) = shape["points"]
                with Image.open(io.BytesIO(base64.b64decode(shape["mask"]))) as pixels:
                    own = np.zeros((HEIGHT, WIDTH), bool)
                    own[top : bottom + 1, left : right + 1] = np.asarray(pixels)
            else:
                assert shape["shape_type"] == "polygon" and shape["mask"] is None and len(shape["points"]) >= 3
                ImageDraw.Draw(own).polygon([tuple(point) for point in shape["points"]], outline=1, fill=1)
            drawn[shape["group_id"] - 1] |= np.asarray(own)
        np.testing.assert_array_equal(drawn, result.masks)
        assert [shape["group_id"] for shape in found["shapes"] if shape["shape_type"] == "mask"] == ([2] if result.frame < 9 else [])


def test_cvat_masks_are_those_that_its_library_reads(tmp_path):
    """CVAT reads an image's masks as its library does the same runs with the box behind them."""
    from cvat_sdk.masks import decode_mask, encode_mask

    folder = written("cvat", tmp_path / "clip-cvat")
    root = ElementTree.parse(folder / "annotations.xml").getroot()
    assert root.tag == "annotations" and root.findtext("version") == "1.1" and root.findtext("meta/task/mode") == "annotation"
    assert [(label.findtext("name"), label.findtext("type")) for label in root.iterfind("meta/task/labels/label")] == [(n, "mask") for n in LABELS.values()]
    for image, result in zip(root.iterfind("image"), results(), strict=True):
        assert {key: image.get(key) for key in ("id", "width", "height")} == {"id": str(result.frame), "width": str(WIDTH), "height": str(HEIGHT)}
        with Image.open(folder / "images" / image.get("name")) as shown:
            assert shown.size == (WIDTH, HEIGHT)
        masks = {int(mask.get("group_id")): mask for mask in image.iterfind("mask")}
        assert list(masks) == [number for number, mask in zip(result.objects, result.masks, strict=True) if mask.any()]
        for number, mask in masks.items():
            left, top, width, height = (int(mask.get(key)) for key in ("left", "top", "width", "height"))
            runs = [*map(int, mask.get("rle").split(",")), left, top, left + width - 1, top + height - 1]
            assert mask.get("label") == LABELS[number] and runs == encode_mask(result.masks[number - 1])
            np.testing.assert_array_equal(decode_mask(runs, image_width=WIDTH, image_height=HEIGHT), result.masks[number - 1])


def test_a_mask_that_begins_with_its_first_pixel_has_an_empty_run_first():
    mask = np.array([[1, 1, 0], [0, 1, 0]], bool)
    assert cvat_mask(mask) == ([0, 2, 1, 1], (0, 0, 2, 2))


def test_label_studio_tasks_hold_the_masks_as_its_brush_paints_them(tmp_path):
    """The decoder in `exported.py` follows the package of Label Studio's own page; `tests/annotation/test_readers.py` reads the same with its SDK."""
    folder = written("label-studio", tmp_path / "clip-label-studio")
    tasks = json.loads((folder / "tasks.json").read_text(encoding="utf-8"))
    config = ElementTree.parse(folder / "labeling_config.xml").getroot()
    assert [label.get("value") for label in config.iterfind("BrushLabels/Label")] == list(LABELS.values())
    assert config.find("BrushLabels").get("toName") == config.find("Image").get("name") == "image" and config.find("Image").get("value") == "$image"
    seen = set()
    for task, result in zip(tasks, results(), strict=True):
        assert task["data"]["image"] == f"/data/local-files/?d=clip-label-studio/images/{result.frame:06d}.jpg"
        assert (folder / "images" / f"{result.frame:06d}.jpg").is_file()
        (prediction,) = task["predictions"]
        assert prediction["model_version"] == "unipixel-jax" and 0 < prediction["score"] <= 1
        wanted = [(LABELS[number], mask) for number, mask in zip(result.objects, result.masks, strict=True) if mask.any()]
        for region, (label, mask) in zip(prediction["result"], wanted, strict=True):
            assert (region["type"], region["from_name"], region["to_name"]) == ("brushlabels", "brush", "image") and region["id"] not in seen
            seen.add(region["id"])
            assert region["value"]["brushlabels"] == [label] and (region["original_width"], region["original_height"]) == (WIDTH, HEIGHT)
            values = decoded_brush(region["value"]["rle"]).reshape(HEIGHT, WIDTH, 4)
            np.testing.assert_array_equal(values, np.repeat(mask[..., None], 4, axis=2) * 255)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (40, 30), (300, 400)])
def test_brush_strokes_are_read_as_they_were_written(size, rng):
    for mask in (rng.random(size) < 0.5, np.zeros(size, bool), np.ones(size, bool)):
        np.testing.assert_array_equal(brush_mask(brush_runs(mask), size), mask)


def test_brush_strokes_of_other_lengths_of_runs_are_read():
    """Eight values of 8 bits in two runs, whose lengths have 3 bits: four values as they are, then four times 200. The last of each four is the opacity."""
    bits = f"{8:032b}" + f"{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    bits += "0" + "00" + f"{3:03b}" + "".join(f"{value:08b}" for value in (9, 9, 9, 0)) + "1" + "00" + f"{3:03b}" + f"{200:08b}"
    bits += "0" * (-len(bits) % 8)
    runs = [int(bits[place : place + 8], 2) for place in range(0, len(bits), 8)]
    assert brush_mask(runs, (1, 2)).tolist() == [[False, True]]


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        (None, "expected a list"),
        ([], "expected a list"),
        ([1, 256], "expected a list"),
        ([1, True], "expected a list"),
        ([0, 0], "ends amid a run"),
        (brush_runs(np.ones((4, 4), bool))[:-3], "ends amid a run"),
        (brush_runs(np.ones((4, 5), bool)), "20 pixels, expected 4x4"),
        ([255] * 40, "pixels, expected 4x4"),
    ],
)
def test_a_bad_brush_stroke_is_refused(runs, words):
    with pytest.raises(UserError, match=words):
        brush_mask(runs, (4, 4))


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


def test_an_empty_mask_has_no_polygons_and_no_holes():
    assert polygons(np.zeros((4, 5), bool)) == [] and not has_holes(np.zeros((4, 5), bool))


def test_holes_are_found():
    ring = disc(40, 40, 20) & ~disc(40, 40, 3)
    assert has_holes(ring) and not has_holes(disc(40, 40, 20)) and not has_holes(disc(20, 40, 8) | disc(60, 40, 8))


def test_objects_are_named_after_their_prompts():
    assert labels_of(["the dog", "all\n cats", "the dog"], [0, 1, 1, 2]) == {1: "the dog #1", 2: "all cats #2", 3: "all cats #3", 4: "the dog #4"}
    assert labels_of(["Please segment the dog.", "Segment a cat"], [1, 0]) == {1: "cat", 2: "dog"}


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("Please segment the large blue square.", "large blue square"),
        ("segment  all\ncars", "cars"),
        ("Can you segment the man on the left in this image?", "man on the left"),
        ("Find the ball!", "ball"),
        ("Where is the dog?", "Where is the dog?"),
        ("Please segment <region>.", "Please segment <region>."),
    ],
)
def test_a_class_is_what_the_prompt_asks_for(prompt, name):
    assert class_name(prompt) == name


def test_names_that_xml_cannot_hold_are_written_without_those_characters(tmp_path):
    for kind, file in (("cvat", "annotations.xml"), ("label-studio", "labeling_config.xml")):
        export = EXPORTS[kind](tmp_path / kind)
        export.start({number: f"bell \x07 <&\"> {number}" for number in LABELS})
        export.add(next(results()))
        export.finish()
        names = [element.get("label") or element.get("value") for element in ElementTree.parse(tmp_path / kind / file).getroot().iter()]
        assert 'bell \ufffd <&"> 1' in names


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
