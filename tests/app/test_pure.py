"""The page's functions that need no model: marks, words, limits, errors, files and sizes."""

import json
import logging
import os
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
from chromium import files_below
from PIL import Image

from unipixel_jax.app import cli, files
from unipixel_jax.app.answer import card, chip, figures, words
from unipixel_jax.app.events import telling
from unipixel_jax.app.files import Folder
from unipixel_jax.app.limits import Limits
from unipixel_jax.app.live import Feed
from unipixel_jax.app.marks import BOX, POINT, Canvas, Marked, clicked, drawn, painted, scaled, undone
from unipixel_jax.app.media import SIDE, open_media, open_photo, shown
from unipixel_jax.app.pictures import data_uri
from unipixel_jax.app.stage import begun
from unipixel_jax.app.style import CSS
from unipixel_jax.app.tabs.pixelqa import named, referred
from unipixel_jax.app.worker import CLIP_TOKENS, USUAL, Figures, Result, Worker
from unipixel_jax.cli import main
from unipixel_jax.config import UniPixelConfig
from unipixel_jax.errors import UserError
from unipixel_jax.infer.buckets import PROMPT_BUCKETS
from unipixel_jax.infer.loading import EMBEDDED
from unipixel_jax.infer.prediction import Prediction, SegmentedObject
from unipixel_jax.infer.visualize import PALETTE
from unipixel_jax.processing import batch
from unipixel_jax.processing.media import read_media
from unipixel_jax.processing.prompts import Box, Mask, Point
from unipixel_jax.processing.tokenizer import Tokenizer

CANVAS = Canvas("photo.png", (600, 2048), 1)
"""An upload that is shown at half of its size."""


def test_clicks_become_points_and_boxes_in_pixels_of_the_upload():
    assert scaled(CANVAS, 10, 20) == (20, 40)
    once = clicked(CANVAS, POINT, 10, 20, "car")
    assert once.references == [Point(20, 40)] and once.marks[0].name == "car" and not CANVAS.marks
    half = clicked(once, BOX, 100, 100)
    assert half.corner == (200, 200) and half.marks == once.marks
    whole = clicked(half, BOX, 50, 10)
    assert whole.references[1] == Box(100, 20, 200, 200) and whole.corner is None
    assert undone(half).corner is None and undone(half).marks == once.marks
    assert undone(whole).marks == once.marks and undone(Canvas()).marks == ()
    with pytest.raises(UserError, match="two corners of the box lie on one line"):
        clicked(half, BOX, 100, 30)
    # a click on the last row or column of the picture lies within the upload
    assert scaled(replace(CANVAS, size=(601, 2047)), 1024, 301) == (2047, 601)


def test_brush_strokes_become_masks_of_the_uploads_size():
    layer = np.zeros((300, 1024, 4), np.uint8)
    layer[10:20, 30:50, 3] = 255
    marked = painted(replace(CANVAS, frame=0), {"layers": [layer, None]})
    mask = marked.references[0]
    assert isinstance(mask, Mask) and mask.array.shape == CANVAS.size and mask.array.sum() == 800 and mask.array[20:40, 60:100].all()
    for nothing in (None, {"layers": []}, {"layers": [np.zeros((3, 3, 4), np.uint8)]}):
        with pytest.raises(UserError, match="nothing is painted yet"):
            painted(CANVAS, nothing)


def test_marks_are_drawn_on_their_frame_alone():
    pixels = np.zeros((60, 80, 3), np.uint8)
    marks = (Marked(Point(20, 20)), Marked(Box(40, 10, 70, 50)), Marked(Mask(np.eye(60, 80, dtype=bool))))
    canvas = Canvas("clip.mp4", (60, 80), 4, 0, marks)
    assert drawn(canvas, pixels).any() and not drawn(replace(canvas, frame=1), pixels).any() and not pixels.any()
    assert drawn(replace(canvas, marks=(), corner=(40, 30)), pixels)[30, 40].tolist() == [255, 255, 255]


def test_large_pictures_are_shown_small():
    assert shown(np.zeros((3000, 4000, 3), np.uint8)).shape == (768, SIDE, 3)
    small = np.zeros((30, 40, 3), np.uint8)
    assert shown(small) is small
    assert data_uri(small, 16).startswith("data:image/jpeg;base64,")


def test_questions_speak_of_objects_by_number_and_name():
    marks = (Marked(Point(1, 1)), Marked(Point(2, 2), "Left car"), Marked(Point(3, 3)))
    text, references = referred("Is [left car] like [2]? And [left car]?", marks)
    assert text == "Is <region> like <region>? And [0]?" and references == [Point(2, 2), Point(3, 3)]
    assert referred("What are these?", marks) == ("What are these?", [mark.reference for mark in marks])
    for question in ("What is [3]?", "What is [moon]?"):
        with pytest.raises(UserError, match=r"which is not marked: expected some of \[0\], \[Left car\], \[2\]"):
            referred(question, marks)
    canvas = Canvas("a.png", (4, 4), 1, 0, marks)
    assert named(canvas, " dog ").marks[-1].name == "dog"
    for name, said in (("", "no name"), ("a]b", "no name"), ("7", "no name"), ("LEFT CAR", "named 'LEFT CAR' already")):
        with pytest.raises(UserError, match=said):
            named(canvas, name)
    with pytest.raises(UserError, match="no object to name"):
        named(Canvas(), "dog")


def result(text="A <b> <|seg|> and [0], [7].", first=1, path="photo.png", frames=1):
    masks = np.zeros((frames, 40, 60), bool)
    masks[:, 10:20, 5:30] = True
    sure = np.full(frames, 0.9, np.float32)
    where = text.find("<|seg|>")
    span = None if where < 0 else (where, where + len("<|seg|>"))
    item = SegmentedObject.from_masks(masks, sure, sure, span)
    return Result(Path(path), Prediction(text, [1, 2, 3], [item], list(range(frames)), (40, 60), ("the <i>dog</i>",), first), Figures(2.0, 3, 0.5, frames))


def test_answers_are_coloured_and_escaped():
    found = result()
    assert words(found.prediction) == f"A &lt;b&gt; {chip(1)} and [0], [7]."
    assert words(result(first=0).prediction, known=1) == f"A &lt;b&gt; {chip(0)} and {chip(0)}, [7]."
    assert "250 pixels, score 0.90" in card(found) and "2.00 s · 3 tokens · 6.0 tokens/s" in card(found)
    assert "<script>" not in card(found, "<script>")
    assert figures(Figures(2.0, 4, 1.0, 10)) == "2.00 s · 4 tokens · 4.0 tokens/s · 10.0 frames/s"
    assert figures(Figures(2.0, 4)) == "2.00 s · 4 tokens · 2.0 tokens/s with the masks"
    assert chip(3, "<a>") == '<span class="ux-chip ux-object-3">3 &lt;a&gt;</span>'
    empty = Result(Path("a.png"), Prediction("No.", [1], [], [0], (4, 4)), Figures(1, 1, 1))
    assert "Nothing is segmented" in card(empty)


def test_the_page_has_the_colours_of_pictures():
    for number, (red, green, blue) in enumerate(PALETTE, start=1):
        assert f".ux-object-{number} {{ background: rgb({red},{green},{blue})" in CSS
    assert "ux-object-1 " in chip(8).replace('"', " ") and "ux-object-7 " in chip(0).replace('"', " ")


def test_errors_become_one_line_and_faults_go_to_the_log(caplog):
    def wrong():
        raise UserError("two\nlines")

    def fault():
        raise KeyError("secret")

    def later():
        yield 1
        raise UserError("late")

    with pytest.raises(gr.Error) as told:
        telling(wrong)()
    assert told.value.message == "two lines"
    with caplog.at_level(logging.ERROR), pytest.raises(gr.Error) as told:
        telling(fault)()
    assert "KeyError" in told.value.message and "secret" not in told.value.message and "secret" in caplog.text
    frames = telling(later)()
    assert next(frames) == 1
    with pytest.raises(gr.Error, match="late"):
        next(frames)
    assert telling(lambda x: x + 1)(1) == 2


def test_uploads_are_bounded(examples, tmp_path):
    photos, clips = examples
    for path in (None, ""):
        with pytest.raises(UserError):
            open_media(path, Limits())
    with pytest.raises(UserError, match="the clip has 8 frames, expected at most 7 on this page"):
        open_media(clips[0].path, Limits(frames=7))
    with pytest.raises(UserError, match="the picture has 384x384 pixels, expected at most 1,000 in all"):
        open_media(photos[0].path, Limits(pixels=1000))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    with pytest.raises(UserError):
        begun(str(tmp_path / "a.png"), Limits())
    assert open_photo(clips[0].path, Limits()).is_image and begun(None, Limits()).path is None
    assert begun(str(clips[0].path), Limits()).frames == 8


def test_downloads_agree_with_each_other(examples, tmp_path):
    folder = Folder(tmp_path, 100)
    source = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(source)
    found = result(path=source)
    mask = found.prediction.objects[0].mask(0)
    with Image.open(files.masks(found, folder)) as image:
        np.testing.assert_array_equal(np.asarray(image), mask)
    coco = json.loads(files.coco(found, folder).read_text())
    assert coco["annotations"] == [
        {"id": 1, "image_id": 1, "category_id": 1, "track_id": 1, "segmentation": dict(found.prediction.objects[0].runs[0]), "bbox": [5, 10, 25, 10],
         "area": 250, "iscrowd": 0, "score": 0.9}
    ]  # fmt: skip
    with Image.open(files.photo(found, "cutout", folder)) as image:
        np.testing.assert_array_equal(np.asarray(image)[..., 3] == 255, mask)
    with zipfile.ZipFile(files.masks(result(path=source, frames=3), folder)) as archive:
        assert archive.namelist() == ["000000.png", "000001.png", "000002.png"]
    source.unlink()
    with pytest.raises(UserError, match="the upload is no longer here"):
        files.photo(found, "overlay", folder)


def test_the_cache_is_bounded(tmp_path):
    folder = Folder(tmp_path, 1)
    for number in range(6):
        path = folder.new("a.bin")
        path.write_bytes(bytes(400_000))
        os.utime(path, (time.time() + number, time.time() + number))
    folder.trim()
    left = files_below(tmp_path)
    assert path in left and sum(file.stat().st_size for file in left) <= 1 << 20


def test_a_feed_ends_where_nothing_was_pushed():
    feed = Feed()
    feed.push(np.ones((2, 2, 3), np.uint8))
    assert next(feed).all()
    with pytest.raises(StopIteration):
        next(feed)


SIZES = [
    (480, 640), (600, 800), (768, 1024), (960, 1280), (1200, 1600), (720, 1280), (1080, 1920), (427, 640), (1000, 1500), (640, 640), (1024, 1024), (375, 500),
    (320, 320), (1080, 2340),
]  # fmt: skip
"""Height and width of the usual screens, cameras and data sets; each is tried upright too."""


@pytest.mark.parametrize("shapes_only", [True, False])
def test_photos_of_usual_sizes_share_the_programs_of_the_warm_up(shapes_only):
    config, tokenizer = UniPixelConfig.from_directory(EMBEDDED), Tokenizer.from_directory(EMBEDDED)
    worker = Worker(lambda: None, "", shapes_only)

    def key(height, width):
        clip = read_media(np.zeros((height, width, 3), np.uint8))
        media = batch.prepare_media(clip, config, sample_frames=16, segment=False, **worker.budget((height, width), True))
        turn = batch.prepare_conversation(batch.user_turn("Please segment the red circle."), media, tokenizer, config)
        inputs = batch.collate([turn], config, tokenizer.pad_id, PROMPT_BUCKETS)
        return json.dumps([np.shape(value) for value in vars(inputs).values() if isinstance(value, np.ndarray)])

    warm = {key(*size) for size in USUAL}
    new = {size for one in SIZES for size in (one, one[::-1]) if key(*size) not in warm}
    assert new == set(), f"{new} are compiled anew"
    assert len(warm) <= 8


def test_clips_come_in_one_size():
    worker = Worker(lambda: None, "", False)
    assert worker.budget((480, 640), False) == worker.budget((2160, 3840), False)
    assert worker.budget((480, 640), False)["min_pixels"] == CLIP_TOKENS * 28**2


def test_the_command_says_what_is_wrong(capsys, monkeypatch):
    assert main(["app", "--port", "0"]) == 1
    assert capsys.readouterr().err == "error: --port is 0, expected 1 to 65535\n"
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    assert main(["app"]) == 1
    assert capsys.readouterr().err == "error: unipixel-jax app needs gradio: run pip install 'unipixel-jax[app]'\n"


def test_the_folder_of_the_page_goes_when_it_ends(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("GRADIO_TEMP_DIR", "before")
    with cli.cache_folder() as folder:
        (folder / "upload.bin").write_bytes(b"x")
        assert os.environ["GRADIO_TEMP_DIR"] == str(folder / "cache") and folder.parent == tmp_path
    assert not list(tmp_path.iterdir())
