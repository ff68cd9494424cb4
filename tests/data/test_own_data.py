import csv
import json
import pickle
import shutil

import numpy as np
import pytest
from marked_samples import SIDE, WHOLE, assembled, drawn, run_length, text_of
from PIL import Image

from unipixel_jax.data.draw import draw
from unipixel_jax.data.frames import square_masks
from unipixel_jax.data.sources import open_source
from unipixel_jax.data.sources.base import Filters
from unipixel_jax.errors import UserError

WIDTH, HEIGHT = 40, 30
LEFT, RIGHT = (4, 6, 14, 20), (22, 8, 34, 25)
"""Two rectangles as x0, y0, x1, y1; the last pixels belong to them."""


def rectangle(x0, y0, x1, y1):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y0 : y1 + 1, x0 : x1 + 1] = True
    return mask


def polygon(x0, y0, x1, y1):
    return [x0, y0, x1 + 1, y0, x1 + 1, y1 + 1, x0, y1 + 1]


def image(path, size=(WIDTH, HEIGHT), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((size[1], size[0], 3), 128, np.uint8)
    pixels[6:21, 4:15] = 200, 30, 30
    Image.fromarray(pixels).save(path, **options)
    return path


def labels(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, np.uint8)).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    """Three images: a label image of two objects, a mask of 0 and 255, and a mask for each object."""
    root = tmp_path / "cups"
    for name in ("one.jpg", "two.png", "three.JPEG"):
        image(root / "images" / name)
    labels(root / "masks/one.png", rectangle(*LEFT) + 2 * rectangle(*RIGHT))
    labels(root / "masks/two.png", 255 * rectangle(*RIGHT))
    labels(root / "masks/three/cup.png", 255 * rectangle(*LEFT))
    labels(root / "masks/three/spoon.png", 1 * rectangle(*RIGHT))
    rows = [
        ("name", "sentence", "object"),
        ("one", "the red cup, on the left", "1"),
        ("one.jpg", "Which cup is gray?", "2"),
        ("one", "all cups"),
        ("two", "the cup"),
        ("three", "the spoon", "spoon"),
        ("three", "everything on the table"),
    ]
    with (root / "sentences.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return root


WANTED = {
    "the red cup, on the left": rectangle(*LEFT),
    "Which cup is gray?": rectangle(*RIGHT),
    "all cups": rectangle(*LEFT) | rectangle(*RIGHT),
    "the cup": rectangle(*RIGHT),
    "the spoon": rectangle(*RIGHT),
    "everything on the table": rectangle(*LEFT) | rectangle(*RIGHT),
}


def check_turns(source, wanted):
    found = {}
    for index in range(len(source)):
        for turn in source[index].turns:
            found[turn.text] = turn.masks.read([0], (HEIGHT, WIDTH))[0, 0]
    assert found.keys() == wanted.keys()
    for text, mask in wanted.items():
        assert np.array_equal(found[text], mask), text


def test_a_folder(folder):
    source = open_source(str(folder), "no/data/root")
    assert [source[i].name.split("/")[-1] for i in range(3)] == ["cups one", "cups three", "cups two"]
    check_turns(source, WANTED)
    assert set(source.data_types) == {"seg_image"}
    for annotation, example in drawn(source):
        assert example.masks.shape == (min(3, len(annotation.turns)), 1, SIDE, SIDE) and example.masks.any(axis=(1, 2, 3)).all()
        assert text_of(example).count("<|seg|>") == len(example.masks)
        assert assembled(example).masks.shape[1] == len(example.masks)


def test_sentences_as_text_or_json(folder):
    path = folder / "sentences.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))[1:]
    path.unlink()
    text = folder / "sentences.txt"
    text.write_text("\n\n".join("\t".join(row) for row in rows) + "\n", encoding="utf-8-sig")
    check_turns(open_source(f"own:{folder}", "x"), WANTED)
    text.unlink()
    content = {
        "one": {"1": "the red cup, on the left", "2": ["Which cup is gray?"], "": "all cups"},
        "two.png": "the cup",
        "three": {"spoon.png": ["the spoon"], "": ["everything on the table"]},
    }
    (folder / "sentences.json").write_text(json.dumps(content))
    check_turns(open_source(f"own:{folder}", "x"), WANTED)


@pytest.fixture
def coco_file(tmp_path):
    """Two images with annotations of every kind."""
    image(tmp_path / "a.jpg")
    image(tmp_path / "images/sub/b.png")
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": HEIGHT, "width": WIDTH}, {"id": "b", "file_name": "sub/b.png"}],
        "categories": [{"id": 3, "name": "cup"}, {"id": 4, "name": "spoon"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 3, "segmentation": [polygon(*LEFT)]},
            {"id": 2, "image_id": 1, "category_id": 3, "segmentation": run_length(rectangle(*RIGHT))},
            {"id": 3, "image_id": 1, "category_id": 4, "segmentation": [polygon(4, 6, 7, 20), polygon(10, 6, 14, 20)]},
            {"id": 4, "image_id": 1, "segmentation": [polygon(*LEFT)], "sentences": ["the red cup", "Which one is red?"]},
            {"id": 5, "image_id": "b", "segmentation": [polygon(*LEFT)], "caption": "A red cup.", "sentence": "something red"},
            {"id": 6, "image_id": "b", "segmentation": [polygon(*RIGHT)], "caption": "A gray cup."},
            {"id": 7, "image_id": "b", "segmentation": [polygon(*LEFT)], "question": "Is <region> red?", "answer": "Yes."},
            {"id": 8, "image_id": "b", "segmentation": [polygon(*RIGHT)], "question": "What is it?", "answer": "A cup."},
        ],
    }
    path = tmp_path / "cups.json"
    path.write_text(json.dumps(content))
    return path


def test_a_coco_file(coco_file):
    source = open_source(str(coco_file), "no/data/root")
    assert sorted((source[i].task, source[i].data_type.replace("box", "point"), len(source[i].turns)) for i in range(len(source))) == [
        ("referring", "ref_point", 2),
        ("region", "region_image", 1),
        ("region", "region_image", 1),
        ("segmentation", "seg_image", 1),
        ("segmentation", "seg_image", 4),
    ]
    by_words = {turn.text or turn.answer: turn for i in range(len(source)) for turn in source[i].turns}
    masks = {words: turn.masks.read([0], (HEIGHT, WIDTH))[0, 0] for words, turn in by_words.items()}
    assert np.array_equal(masks["cup"], rectangle(*LEFT) | rectangle(*RIGHT))
    assert np.array_equal(masks["spoon"], rectangle(4, 6, 7, 20) | rectangle(10, 6, 14, 20))
    for words, box in {"the red cup": LEFT, "Which one is red?": LEFT, "something red": LEFT, "A red cup.": LEFT, "A gray cup.": RIGHT}.items():
        assert np.array_equal(masks[words], rectangle(*box)), words
    assert by_words["Is <region> red?"].answer == "Yes." and "<region>: What is it?" in by_words
    assert by_words["cup"].kind == "query" and by_words["Which one is red?"].kind == "sentence"
    for annotation, example in drawn(source):
        assert len(example.references) == (2 if annotation.task == "referring" else 0)
        assert text_of(example).count("<|mem|>") == (1 if annotation.task == "region" else 0)
        assembled(example)


def test_points_lie_in_the_objects(coco_file):
    source = open_source(str(coco_file), "x")
    (index,) = (i for i in range(len(source)) if source[i].task == "referring")
    example = draw(source[index], WHOLE, np.random.default_rng(3))
    answers = [m["content"] for m in example.messages[1::2]]
    for answer, reference in zip(answers, example.references, strict=True):
        x, y = reference.coords.mean(axis=0).round().astype(int)
        assert square_masks(rectangle(*(LEFT if "red" in answer else RIGHT))[None, None], SIDE)[0, 0, y, x]


def test_names_with_dots(folder):
    for old, new in (
        ("images/three.JPEG", "images/3.10.jpg"),
        ("masks/three", "masks/3.10"),
        ("images/one.jpg", "images/1.5.jpg"),
        ("masks/one.png", "masks/1.5.png"),
    ):
        (folder / old).rename(folder / new)
    path = folder / "sentences.csv"
    path.write_text(path.read_text().replace("three,", "3.10,").replace("one.jpg,", "1.5.jpg,").replace("one,", "1.5,"))
    check_turns(open_source(str(folder), "x"), WANTED)


def test_it_travels_to_workers_and_reads_masks_only_when_drawn(folder):
    source = open_source(str(folder), "x")
    copy = pickle.loads(pickle.dumps(source))
    assert len(pickle.dumps(source)) < 2000 and copy[0] == source[0]
    (folder / "masks/one.png").unlink()
    with pytest.raises(UserError, match=r"masks/one\.png does not exist"):
        draw(source[0], WHOLE, np.random.default_rng(0))


def test_what_counts_as_own_data(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert len(open_source("cups", "x")) == len(open_source("own:cups", "x")) == 3
    with pytest.raises(UserError, match="or a path to own data"):
        open_source("mugs", "x")
    with pytest.raises(UserError, match=r"mugs\.json does not exist"):
        open_source("mugs.json", "x")
    with pytest.raises(UserError, match=r"sentences\.csv ends in \.csv, expected a COCO-style \.json file or a folder"):
        open_source("cups/sentences.csv", "x")
    with pytest.raises(UserError, match="the filters left none"):
        open_source("cups", "x", filters=Filters(min_frames=2))


def _append(name, line):
    def change(root):
        path = root / name
        path.write_text(path.read_text() + line + "\n")

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: shutil.rmtree(root / "images"), "images is missing: own data is a folder with images/, masks/ and sentences.json or"),
        (lambda root: shutil.rmtree(root / "masks"), "masks is missing"),
        (lambda root: [p.unlink() for p in (root / "images").iterdir()], "images is empty: put images there that end in .jpg"),
        (lambda root: (root / "images/notes.txt").write_text("x"), "notes.txt ends in .txt, expected an image ending in"),
        (lambda root: image(root / "images/one.png"), "one.png and one.jpg have one name"),
        (lambda root: (root / "images/two.png").write_text("x"), "two.png is not an image that can be read"),
        (lambda root: image(root / "images/one.jpg", exif=_turned()), r"one.jpg is stored turned \(EXIF orientation 6\)"),
        (lambda root: image(root / "images/four.jpg"), "1 of 4 images have no sentence, the first is four.jpg"),
        (lambda root: labels(root / "masks/five.png", rectangle(*LEFT)), "five.png belongs to no image"),
        (lambda root: (root / "masks/two.png").rename(root / "masks/two.PNG"), "two.PNG ends in .PNG, expected a mask ending in .png"),
        (lambda root: image(root / "masks/two.jpg"), "two.jpg ends in .jpg, expected a mask ending in .png"),
        (lambda root: image(root / "masks/two.png"), "two.png has 3 channels, expected one"),
        (lambda root: labels(root / "masks/two.png", np.ones((HEIGHT, WIDTH + 1))), "two.png is 41x30 pixels, its image 40x30"),
        (lambda root: labels(root / "masks/one.png", np.ones((HEIGHT + 1, WIDTH))), "one.png is 40x31 pixels, expected 40x30"),
        (lambda root: labels(root / "masks/two.png", np.zeros((HEIGHT, WIDTH))), "the mask of 'the cup' is empty"),
        (lambda root: (root / "masks/two.png").unlink(), "the image two has no mask: expected .*two.png, or masks of its objects in"),
        (lambda root: labels(root / "masks/two/cup.png", rectangle(*LEFT)), "there are both .*two.png and the folder"),
        (lambda root: (root / "sentences.csv").unlink(), "has no sentences, expected exactly one of sentences.json, sentences.csv, sentences.txt"),
        (lambda root: (root / "sentences.json").write_text("{}"), "has sentences.json, sentences.csv, expected exactly one"),
        (lambda root: (root / "sentences.csv").write_bytes(b"one,\xff\xfe"), "is not text in UTF-8"),
        (_append("sentences.csv", "six,the cup"), "line 8 is about 'six', but .*images has no such image"),
        (_append("sentences.csv", "one,"), "line 8 has no sentence for 'one'"),
        (_append("sentences.csv", "one"), "line 8 has 1 parts, expected the image's name, a sentence"),
        (_append("sentences.csv", "one,a,b,c"), 'line 8 has 4 parts, .* and "quotes" around a sentence with commas'),
        (_append("sentences.csv", "one,the cup,cup"), "asks for the object 'cup' of .*one.png, expected its number in that image"),
        (_append("sentences.csv", "one,the cup,9"), "the mask of 'the cup' is empty"),
        (_append("sentences.csv", "three,the fork,fork"), "asks for the object 'fork', but .*three has only cup, spoon"),
    ],
)
def test_mistakes_in_a_folder(folder, change, message):
    change(folder)
    with pytest.raises(UserError, match=message) as caught:
        open_source(str(folder), "x")
    assert "\n" not in str(caught.value)


def _turned():
    exif = Image.Exif()
    exif[274] = 6
    return exif


@pytest.mark.parametrize(
    ("content", "message"), [(["a"], "holds a list, expected an object"), ({"one": 3}, "'one' has 3, expected a sentence"), ({"one": [""]}, "no sentence")]
)
def test_mistakes_in_sentences_json(folder, content, message):
    (folder / "sentences.csv").unlink()
    (folder / "sentences.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        open_source(str(folder), "x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["images"].pop(), r"annotation 5 has the image_id 'b', expected the id of one of the 1 images"),
        (lambda c: c.pop("annotations"), "has no usable 'annotations', .* it has: images, categories"),
        (lambda c: c.update(images=[]), "has no usable 'images'"),
        (lambda c: c["images"][0].update(file_name="c.jpg"), r"image 1 is missing: expected .*c.jpg or .*images/c.jpg"),
        (lambda c: c["images"][0].update(file_name=7), "image 1 has the file_name 7, expected text"),
        (lambda c: c["images"][0].update(width=80), "a.jpg is 40x30 pixels, but .*cups.json says 80x30"),
        (lambda c: c["images"][1].update(id=1), "an entry of 'images' has the id 1, expected a number or text that no other has"),
        (lambda c: c["images"][1].update(id=[1]), r"an entry of 'images' has the id \[1\]"),
        (lambda c: c["annotations"][0].update(image_id=None), "annotation 1 has the image_id None"),
        (lambda c: c["annotations"][0].update(segmentation=[[1, 2, float("nan"), 4, 5, 6]]), "expected corners near its image of 40x30 pixels"),
        (lambda c: c["annotations"][3].update(sentences=7), "annotation 4 has the sentence 7, expected words"),
        (lambda c: c["annotations"][0].update(category_id=9), "annotation 1 has no words and the category_id 9"),
        (lambda c: c["annotations"][0].update(segmentation=[]), r"annotation 1 has the segmentation \[\], expected polygons"),
        (lambda c: c["annotations"][0].update(segmentation=[[1, 2, 3, 4]]), "at least three corners"),
        (lambda c: c["annotations"][0].update(segmentation=[polygon(30, 6, 60, 20)]), "corners up to 61, 21, but its image is 40x30"),
        (lambda c: c["annotations"][2].update(segmentation=[polygon(3, 3, 2, 2)]), "the mask of 'spoon' is empty"),
        (lambda c: c["annotations"][1]["segmentation"].update(size=[9, 9]), r"run lengths for the size \[9, 9\], expected \[30, 40\]"),
        (lambda c: c["annotations"][1]["segmentation"].update(counts=None), "the counts 'None', expected text, or a list of whole numbers"),
        (lambda c: c["annotations"][3].update(sentences=["fine", ""]), "annotation 4 has the sentence '', expected words"),
        (lambda c: c["annotations"][4].update(caption=None), "annotation 5 has the caption None, expected words"),
        (lambda c: c["annotations"][6].pop("answer"), "annotation 7 has the answer None, expected words"),
        (lambda c: c["annotations"][6].update(question="<region> or <region>?"), "expected <region> once at most"),
        (lambda c: c["categories"][0].pop("name"), "category 3 has the name None, expected text"),
    ],
)
def test_mistakes_in_a_coco_file(coco_file, change, message):
    content = json.loads(coco_file.read_text())
    change(content)
    coco_file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as caught:
        open_source(str(coco_file), "x")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_coco(tmp_path):
    path = tmp_path / "x.json"
    for text, message in (("[]", "holds a list, expected an object with images"), ("{", "is not JSON"), ("{}", "it has: nothing")):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            open_source(str(path), "x")
