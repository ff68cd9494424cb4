"""Own data that would be taken for something else: tables, encodings, palettes and types."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unipixel_jax.data.sources import open_source
from unipixel_jax.errors import UserError

CASES = Path(__file__).parents[1] / "cases"
SIZE = (30, 40)
DISC = np.hypot(*(np.mgrid[:30, :40] - np.array([15, 20])[:, None, None])) < 9


@pytest.fixture
def folder(tmp_path):
    """Two images with a mask each."""
    root = tmp_path / "own"
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    for name in ("IMG_1", "IMG_2"):
        Image.new("RGB", SIZE[::-1], "gray").save(root / f"images/{name}.jpg")
        Image.fromarray(DISC.astype(np.uint8)).save(root / f"masks/{name}.png")
    return root


def sentences(root, content, name="sentences.csv"):
    (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    source = open_source(str(root), "x")
    return {source[i].name.split()[-1]: [turn.text for turn in source[i].turns] for i in range(len(source))}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('IMG_1,"the red\ncircle"\nIMG_2,b\n', "the red circle"),
        ('IMG_1,"the red\r\n  circle"\r\nIMG_2,b\r\n', "the red circle"),
        ('IMG_1,"the red\rcircle"\rIMG_2,b', "the red circle"),
        ("IMG_1,the red\u2028circle\nIMG_2,b\n", "the red circle"),
        ("IMG_1,the red\u0085circle\nIMG_2,b\n", "the red circle"),
        ("IMG_1,the red\x0bcircle\x0c\nIMG_2,b\n", "the red circle"),
        ("IMG_1,the red\x1ccircle\nIMG_2,b\n", "the red circle"),
        ('IMG_1, "the red, circle"\nIMG_2, b\n', "the red, circle"),
        ('IMG_1,the 5" circle\nIMG_2,b\n', 'the 5" circle'),
        ('IMG_1,"the ""red"" circle"\nIMG_2,b\n', 'the "red" circle'),
        ("\ufeffIMG_1,the red circle\n\n\nIMG_2,b", "the red circle"),
        ("\ufeffname,sentence\nIMG_1,the red circle\nIMG_2,b", "the red circle"),
    ],
)
def test_cells_of_tables(folder, content, words):
    assert sentences(folder, content) == {"IMG_1": [words], "IMG_2": ["b"]}


def test_tables_with_tabs_have_the_same_rules(folder):
    assert sentences(folder, 'IMG_1\t"the red\ncircle"\nIMG_2\ta, b\u2028c', "sentences.txt") == {"IMG_1": ["the red circle"], "IMG_2": ["a, b c"]}
    with pytest.raises(UserError, match=r"sentences\.txt, line 2 has a quote that is not closed"):
        sentences(folder, 'IMG_1\ta\nIMG_2\t"b\nIMG_2\tc', "sentences.txt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('IMG_1,"the red circle,1\nIMG_1,the blue square,2\n', "line 1 has a quote that is not closed"),
        ('IMG_2,a\n\nIMG_1,"the red circle\nIMG_1,"the blue square"\n', "line 3 has a quote that is not closed, or more behind one"),
        ('IMG_2,"a\nb"\nIMG_1,"the red" circle\n', "line 3 has a quote that is not closed, or more behind one"),
        ('IMG_2,a\nIMG_1,the red circle,"1', "line 2 has a quote that is not closed"),
        ('IMG_2,"a\nb"\nIMG_1\n', "line 3 has 1 parts"),
        ("IMG_1,a\nIMG_2," + "b" * 200_000, "line 2 has .*field larger than field limit"),
        ("IMG_1;the red circle\nIMG_2;b\n", "line 1 has 1 parts, expected the image's name, a sentence and perhaps an object, between commas"),
        ("IMG_1\tthe red circle\nIMG_2\tb\n", "line 1 has 1 parts"),
        ("IMG_1,the red\x00circle\n", "null characters"),
        ("IMG_1,the red circle\n".encode("utf-16"), "the mark of UTF-16"),
        ("IMG_1,круг\n".encode("cp1251"), "is not text in UTF-8"),
    ],
)
def test_mistakes_in_tables(folder, content, message):
    with pytest.raises(UserError, match=message) as caught:
        sentences(folder, content)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("case", ["open_quote"])
def test_a_table_with_an_open_quote(case):
    with pytest.raises(UserError, match=r"sentences\.csv, line 1 has a quote that is not closed"):
        open_source(str(CASES / "csv_quotes_and_newlines" / case), "x")


@pytest.mark.parametrize("name", ["gbk_json", "sjis_json", "cp1251_json", "c_gbk/a.json"])
def test_json_in_code_pages(name):
    with pytest.raises(UserError, match=r"\.json is not text in UTF-8 .*: save it as UTF-8"):
        open_source(str(CASES / "own_json_not_utf8" / name), "x")


@pytest.mark.parametrize("encoding", ["cp1252", "big5", "euc_kr", "euc_jp", "koi8_r", "utf-16", "utf-16-be", "utf-32"])
def test_sentences_in_other_encodings(folder, encoding):
    words = {"cp1252": "le café", "koi8_r": "круг", "euc_kr": "원", "euc_jp": "赤い円"}.get(encoding, "圓")
    content = json.dumps({"IMG_1": words, "IMG_2": "b"}, ensure_ascii=False)
    with pytest.raises(UserError, match="save it as UTF-8"):
        sentences(folder, content.encode(encoding), "sentences.json")
    for good in ("utf-8", "utf-8-sig"):
        assert sentences(folder, content.encode(good), "sentences.json")["IMG_1"] == [words]


def test_breaks_in_sentences_of_json(folder):
    assert sentences(folder, json.dumps({"IMG_1": "the red\ncircle", "IMG_2": ["a\u2029b"]}), "sentences.json") == {
        "IMG_1": ["the red circle"],
        "IMG_2": ["a b"],
    }


def test_half_characters_are_no_words(folder):
    with pytest.raises(UserError, match="expected text in Unicode with whole characters"):
        sentences(folder, '{"IMG_1": "a \\ud83d", "IMG_2": "b"}', "sentences.json")
    assert sentences(folder, '{"IMG_1": "a \\ud83d\\ude00", "IMG_2": "b"}', "sentences.json")["IMG_1"] == ["a 😀"]


def palette(path, numbers, colours, **options):
    image = Image.fromarray(numbers.astype(np.uint8), "P")
    image.putpalette([channel for colour in colours for channel in colour])
    image.save(path, **options)


BLACK, WHITE, RED, GREEN, DARK = (0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 128, 0), (3, 3, 3)


@pytest.mark.parametrize(
    ("colours", "numbers"),
    [
        ([BLACK, WHITE], DISC),
        ([BLACK, RED, GREEN], DISC * 2),
        ([DARK, (250, 250, 250)], DISC),
        ([(i, i, i) for i in range(256)], DISC * 1),
        ([BLACK, WHITE, BLACK], DISC),
    ],
    ids=["black and white", "colours", "nearly black", "gray", "black that is not used"],
)
@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF"])
def test_palettes_with_black_for_0(folder, colours, numbers, kind):
    palette(folder / "masks/IMG_1.png", numbers, colours, format=kind)
    (folder / "sentences.csv").write_text("IMG_1,the disc\nIMG_2,the disc\n")
    annotation = open_source(str(folder), "x")[0]
    np.testing.assert_array_equal(annotation.turns[0].masks.read([0], SIZE)[0, 0], DISC)


@pytest.mark.parametrize(
    ("colours", "numbers", "message"),
    [
        ([WHITE, BLACK], ~DISC, r"number 0 is the colour \(255, 255, 255\), expected black for 0"),
        ([RED, BLACK], ~DISC, r"number 0 is the colour \(255, 0, 0\)"),
        ([(0, 0, 255), WHITE], ~DISC, r"number 0 is the colour \(0, 0, 255\)"),
        ([DARK, WHITE, BLACK], DISC + 1, r"number 2 is the colour \(0, 0, 0\)"),
        ([BLACK, BLACK, WHITE], DISC + 1, r"number 1 is the colour \(0, 0, 0\)"),
        ([WHITE, BLACK, WHITE], DISC + 1, r"number 0 is the colour \(255, 255, 255\)"),
        ([BLACK] * 256, DISC, r"number 1 is the colour \(0, 0, 0\)"),
    ],
    ids=["white and black", "object first", "on white", "darker than 0", "black twice", "white twice", "all black"],
)
@pytest.mark.parametrize("name", ["masks/IMG_1.png", "masks/IMG_1/disc.png"])
def test_palettes_whose_0_is_an_object(folder, colours, numbers, message, name):
    (folder / "masks/IMG_1.png").unlink()
    (folder / name).parent.mkdir(exist_ok=True)
    palette(folder / name, numbers, colours)
    with pytest.raises(UserError, match=rf"{name} has a palette whose {message}"):
        sentences(folder, "IMG_1,the disc\nIMG_2,the disc\n")


def test_a_palette_that_a_program_chose():
    with pytest.raises(UserError, match=r"IMG_1\.png has a palette whose number 0 is the colour"):
        open_source(str(CASES / "palette_mask_inverted/pal_inverted"), "x")


@pytest.mark.parametrize("kind", ["JPEG", "JPEG2000", "EPS", "PDF"])
def test_masks_in_formats_that_keep_no_numbers(folder, kind):
    Image.fromarray(255 * DISC.astype(np.uint8)).save(folder / "masks/IMG_1.png", kind)
    with pytest.raises(UserError, match=r"IMG_1\.png is not an image that can be read: expected PNG"):
        sentences(folder, "IMG_1,the disc\nIMG_2,the disc\n")


def test_masks_that_are_pipes(folder):
    (folder / "masks/IMG_1.png").unlink()
    (folder / "masks/IMG_1").mkdir()
    os.mkfifo(folder / "masks/IMG_1/disc.png")
    with pytest.raises(UserError, match="is a pipe, socket or device"):
        sentences(folder, "IMG_1,the disc\nIMG_2,the disc\n")


def test_an_image_with_broken_exif(folder):
    head, tail = b"II*\x00\x08\x00\x00\x00", b"\xff" * 40
    for exif in (head + tail, b"nonsense", head + b"\x01\x00\x12\x01\x05\x00\xff\xff\xff\xff\xff\xff\xff\xff"):
        Image.new("RGB", SIZE[::-1]).save(folder / "images/IMG_1.png", exif=exif)
        (folder / "images/IMG_1.jpg").unlink(missing_ok=True)
        try:
            assert sentences(folder, "IMG_1,the disc\nIMG_2,the disc\n")["IMG_1"] == ["the disc"]
        except UserError as error:
            assert "IMG_1.png" in str(error)


@pytest.fixture
def coco_file(tmp_path):
    """Writes a file with one image, one annotation and changes."""
    shutil.copytree(CASES / "rle_runs_too_short" / "images", tmp_path / "images")

    def write(image=(), **annotation):
        content = {
            "images": [{"id": 1, "file_name": "IMG 1.jpg", **dict(image)}],
            "categories": [{"id": 0, "name": "circle"}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 0, "segmentation": [[22, 40, 52, 40, 52, 70, 22, 70]], **annotation}],
        }
        (tmp_path / "a.json").write_text(json.dumps(content))
        return open_source(str(tmp_path / "a.json"), "x")

    assert len(write({"height": 112, "width": 160})) == 1
    return write


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ({"height": "112"}, "image 1 has the height '112' and the width 160, expected numbers of pixels, without quotes"),
        ({"width": "160"}, "the width '160', expected numbers of pixels"),
        ({"height": None}, "the height None"),
        ({"height": True}, "the height True"),
        ({"height": [112]}, r"the height \[112\]"),
        ({"height": 160, "width": 112}, r"IMG 1\.jpg is 160x112 pixels, but .* says 112x160"),
        ({"height": 10**400}, "is 160x112 pixels, but"),
        ({"height": float("nan")}, "is 160x112 pixels, but .* says 160xnan"),
        ({"id": "1"}, "annotation 1 has the image_id 1, expected the id of one of the 1 images"),
        ({"file_name": "a\x00b.jpg"}, "is missing"),
        ({"file_name": "\ud800.jpg"}, "is missing"),
    ],
)
def test_types_of_an_image(coco_file, image, message):
    with pytest.raises(UserError, match=message):
        coco_file(image)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [112, 160], "counts": [100, 50]}, "annotation 1 has run lengths for 150 pixels, expected 17920"),
        ({"size": [112, 160], "counts": "PPYo0"}, "annotation 1 has "),
        ({"size": [160, 112], "counts": [0, 17920]}, r"run lengths for the size \[160, 112\], expected \[112, 160\]"),
        ({"size": ["112", "160"], "counts": [0, 17920]}, "expected \\[height, width\\] in whole pixels"),
        ({"size": [112, 160]}, "the counts 'None'"),
        ([["22", "40", "52", "40", "52", "70"]], "expected numbers x0, y0"),
        ([[22, 40, 1e9, 40, 52, 70]], "expected corners near its image of 160x112"),
        ([[22, 40, 10**400, 40, 52, 70]], "expected numbers x0, y0"),
        ("text", "expected polygons"),
        ([7], "expected numbers x0, y0|expected at least three corners"),
    ],
)
def test_masks_of_an_annotation(coco_file, segmentation, message):
    with pytest.raises(UserError, match=message) as caught:
        coco_file(segmentation=segmentation)
    assert "a.json: annotation 1 has" in str(caught.value)


def test_run_lengths_that_are_too_short():
    with pytest.raises(UserError, match=r"short\.json: annotation 1 has run lengths for 150 pixels, expected 17920"):
        open_source(str(CASES / "rle_runs_too_short/short.json"), "x")
