"""The options and results of `segment`, `track`, `ask` and `describe`, with the model that ships with the package."""

import contextlib
import functools
import http.server
import io
import json
import shutil
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from unipixel_jax import UniPixel
from unipixel_jax.cli import main
from unipixel_jax.demo import ASSETS
from unipixel_jax.errors import UserError
from unipixel_jax.infer import opening, stream
from unipixel_jax.infer.progress import Steps
from unipixel_jax.processing.rle import decode_mask

PHOTO, CLIP = str(ASSETS / "photo.png"), str(ASSETS / "clip.gif")
CIRCLE, SQUARE, NOTHING = "Please segment the yellow circle.", "Please segment the purple square.", "Describe the image."
LARGE_SQUARE = "Please segment the large blue square."
SHORT = ("--max-new-tokens", "24", "--sample-frames", "4")


@pytest.fixture(scope="module")
def model():
    return UniPixel.from_pretrained(dtype="float32")


@pytest.fixture(autouse=True)
def own_folder(monkeypatch, tmp_path, model):
    monkeypatch.setenv("UNIPIXEL_JAX_CACHE", "")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("unipixel_jax.infer.predictor.UniPixel.from_pretrained", lambda *_, **__: model)


def fails(arguments, capsys, words):
    assert main(arguments) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and words in lines[0], lines


def test_several_prompts_are_tracked_together_and_exported(monkeypatch, tmp_path, capsys):
    encoded, seen = stream.encoded, []

    def counted(sam2, squares, *args, **options):
        return encoded(sam2, (seen.append(1) or square for square in squares), *args, **options)

    monkeypatch.setattr(stream, "encoded", counted)
    formats = ["--format", "coco,yolo", "--format", "labelme,png"]
    assert main(["segment", CLIP, CIRCLE, "--prompt", NOTHING, "--prompt", SQUARE, "--json", "a.json", *formats, *SHORT]) == 0
    printed = capsys.readouterr()
    assert f"({CIRCLE})" in printed.out and f'no such object: the answer to "{NOTHING}"' in printed.err
    report = json.loads((tmp_path / "a.json").read_text())
    assert len(seen) == len(report["frames"]) == 8, "each frame is encoded once"
    assert report["prompts"] == [
        {"prompt": CIRCLE, "found": True, "objects": [1]},
        {"prompt": NOTHING, "found": False, "objects": []},
        {"prompt": SQUARE, "found": True, "objects": [2]},
    ]
    assert [item["prompt"] for item in report["objects"]] == [0, 2] and len(report["text"].splitlines()) == 3
    assert all(report["text"][slice(*item["span"])] == "<|seg|>" for item in report["objects"])

    masks = np.array([[decode_mask(runs) for runs in item["masks"]] for item in report["objects"]])
    coco = COCO("outputs/clip-coco/annotations.json")
    assert [f"Please segment the {category['name']}." for category in coco.loadCats([1, 2])] == [CIRCLE, SQUARE]
    for item in coco.loadAnns(coco.getAnnIds()):
        np.testing.assert_array_equal(coco.annToMask(item), masks[item["category_id"] - 1, coco.imgs[item["image_id"]]["frame"]])
    assert len(coco.anns) == np.count_nonzero(masks.any((2, 3))) > 8
    for frame in range(8):
        with Image.open(f"outputs/clip-png/{frame:06d}.png") as image:
            np.testing.assert_array_equal(np.asarray(image) > 0, masks[:, frame].any(0))
        lines = (tmp_path / f"outputs/clip-yolo/labels/{frame:06d}.txt").read_text().splitlines()
        shapes = json.loads((tmp_path / f"outputs/clip-labelme/{frame:06d}.json").read_text())["shapes"]
        assert {int(line.split()[0]) + 1 for line in lines} == {shape["group_id"] for shape in shapes} == set(1 + np.flatnonzero(masks[:, frame].any((1, 2))))
    fails(["segment", CLIP, CIRCLE, "--format", "png", *SHORT], capsys, "outputs/clip-png holds files already")


def test_an_interrupted_export_goes_on_to_the_same_files(monkeypatch, tmp_path, capsys):
    asked = ["segment", CLIP, CIRCLE, "--prompt", SQUARE, "--json", "a.jsonl", "--format", "coco,yolo,png,mp4", *SHORT]
    assert main([*asked, "--output-dir", "whole"]) == 0
    advance, frames = Steps.advance, []

    def interrupt(self):
        frames.append(1)
        if len(frames) == 3:
            raise KeyboardInterrupt
        advance(self)

    monkeypatch.setattr(Steps, "advance", interrupt)
    assert main([*asked, "--output-dir", "parts"]) == 130
    assert "stopped after 3 frames" in capsys.readouterr().err
    assert len(COCO("parts/clip-coco/annotations.json").imgs) == len(list((tmp_path / "parts" / "clip-png").iterdir())) == 3
    fails([*asked, "--prompt", NOTHING, "--output-dir", "parts", "--resume"], capsys, "a.jsonl was made with other prompts")
    assert main([*asked, "--output-dir", "parts", "--resume"]) == 0 and len(frames) == 8

    def written(folder):
        return {path.relative_to(tmp_path / folder): path.read_bytes() for path in (tmp_path / folder).rglob("*") if path.is_file() and path.suffix != ".mp4"}

    assert len(written("whole")) == 1 + 8 + 1 + 16 + 8 and written("parts") == written("whole")


def test_prompts_in_python_answer_as_they_do_alone(model):
    together = model.segment(PHOTO, [LARGE_SQUARE, "Please segment the small red circle."], max_new_tokens=24)
    alone = model.segment(PHOTO, LARGE_SQUARE, max_new_tokens=24)
    assert together.text.splitlines()[0] == alone.text and [item.prompt for item in together.objects] == [0, 1]
    np.testing.assert_array_equal(together.objects[0].masks, alone.objects[0].masks)
    assert not (together.objects[0].masks & together.objects[1].masks).any()
    for prompts, references in (([], ()), (["a <region>", "b"], [SimpleNamespace()])):
        with pytest.raises(UserError, match="expected at least one prompt"):
            model.segment(PHOTO, prompts, references)


def test_masks_from_files(capsys, tmp_path):
    labels = np.zeros((320, 320), np.uint8)
    labels[185:262, 82:168], labels[110:180, 50:100] = 9, 4
    palette = Image.fromarray(labels)
    palette.putpalette(list(range(256)) * 3)
    palette.save("labels.png")
    assert main(["ask", PHOTO, "Is <region> larger than <region>?", "--mask", "labels.png", "--json", "a.json", *SHORT]) == 0
    report = json.loads((tmp_path / "a.json").read_text())
    assert [item["areas"] for item in report["objects"][:2]] == [[70 * 50], [77 * 86]], "the order is that of the indices"
    Image.fromarray(labels == 9).save("square.png")
    assert main(["describe", PHOTO, "--mask", "square.png", *SHORT]) == 0
    assert "blue square" in capsys.readouterr().out
    fails(["describe", PHOTO, "--mask", "labels.png"], capsys, "2 objects are pointed at, expected one")
    fails(["ask", CLIP, "What is <region>?", "--mask", "square.png"], capsys, "the mask square.png is 320x320 pixels, the media")
    fails(["ask", PHOTO, "What is <region>?", "--mask", "square.png,3"], capsys, "frame 3 is not in the clip")
    fails(["ask", PHOTO, "What is <region>?", "--mask", "square.png", "--point", "1,2"], capsys, "--mask is given with --point or --box")
    fails(["ask", PHOTO, "What is it?"], capsys, "nothing is pointed at")
    Image.new("L", (320, 320)).save("black.png")
    fails(["describe", PHOTO, "--mask", "black.png"], capsys, "the mask black.png marks nothing")


def test_a_point_is_described_on_a_crop(capsys):
    """Coordinates are those of the crop, in which only the blue square has anything at this place."""
    where = ["--crop", "40,100,200,180", "--point", "85,120"]
    assert main(["describe", PHOTO, *where, *SHORT]) == 0
    with Image.open("outputs/photo-objects.png") as overlay:
        assert "blue" in capsys.readouterr().out and overlay.size == (200, 180)


def test_no_such_object(capsys, tmp_path):
    assert main(["segment", PHOTO, NOTHING, "--json", "a.json", "--format", "coco", *SHORT]) == 0
    assert capsys.readouterr().err.startswith(f'no such object: the answer to "{NOTHING}" segments nothing')
    report = json.loads((tmp_path / "a.json").read_text())
    assert report["found"] is False and report["objects"] == [] and report["frames"] == [0] and not (tmp_path / "outputs").exists()
    assert main(["track", PHOTO, NOTHING, *SHORT]) == 0
    printed = capsys.readouterr()
    (line,) = printed.out.splitlines()
    assert json.loads(line)["found"] is False and "no such object" in printed.err


def test_track_says_which_prompt_an_object_belongs_to(capsys):
    assert main(["track", PHOTO, NOTHING, "--prompt", LARGE_SQUARE, *SHORT]) == 0
    first, frame = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["prompts"] == [NOTHING, LARGE_SQUARE] and first["objects"] == [{"prompt": 1}]
    assert frame["objects"][0]["number"] == 1 and frame["objects"][0]["area"] > 1000


def test_an_answer_begins_as_it_is_told(model):
    free = model.segment(PHOTO, LARGE_SQUARE, max_new_tokens=24)
    told = model.segment(PHOTO, LARGE_SQUARE, max_new_tokens=24, answer_start="It is the")
    assert told.text == free.text and told.tokens == free.tokens and told.objects[0].span == free.objects[0].span
    np.testing.assert_array_equal(told.objects[0].masks, free.objects[0].masks)
    forced = model.segment(PHOTO, NOTHING, max_new_tokens=24, answer_start="Sure: <|seg|>")
    assert forced.text.startswith("Sure: <|seg|>") and forced.objects[0].span == (6, 13)
    for start, words in (("  ", "give words"), ("yes<|im_end|>", "begin and end turns")):
        with pytest.raises(UserError, match=words):
            model.segment(PHOTO, LARGE_SQUARE, answer_start=start)


def test_a_budget_of_pixels_reaches_the_language_side(model, monkeypatch):
    grids = []
    monkeypatch.setattr(model.__class__, "_generate_answer", lambda self, turn, prepared, *_, **__: grids.append(prepared.grid_thw) or 1 / 0)
    for budget in ({}, {"max_pixels": 28 * 28 * 16}, {"min_pixels": 28 * 28 * 600}):
        with pytest.raises(ZeroDivisionError):
            model.segment(PHOTO, LARGE_SQUARE, **budget)
    pixels = [height * width * model.config.vision.patch_size**2 for _, height, width in grids]
    assert pixels[1] <= 28 * 28 * 16 < pixels[0] < 28 * 28 * 600 <= pixels[2]


def test_options_reach_the_model(monkeypatch, capsys):
    def track(source, prompts, **options):
        raise UserError(f"{prompts} {options}")

    monkeypatch.setattr("unipixel_jax.infer.predictor.UniPixel.from_pretrained", lambda *_, **__: SimpleNamespace(track=track))
    given = ["--answer-start", "Sure", "--min-pixels", "784", "--max-pixels", "9999", *SHORT]
    options = {"only_sampled": False, "sample_frames": 4, "max_new_tokens": 24, "answer_start": "Sure", "min_pixels": 784, "max_pixels": 9999}
    for command in ("segment", "track"):
        fails([command, PHOTO, "a", "--prompt", "b", *given], capsys, f"['a', 'b'] {options}")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--max-pixels", "700"], "max_pixels is 700, expected 784 to"),
        (["--min-pixels", "99999999999"], "min_pixels is 99999999999"),
        (["--min-pixels", "2000", "--max-pixels", "1000"], "min_pixels is 2000 and max_pixels 1000"),
        (["--answer-start", " "], "the start of the answer is ' '"),
        (["--prompt", " "], "the prompt is empty"),
        (["--format", "gif,mp4"], "names both gif and mp4"),
        (["--crop", "1,2,3"], "--crop is '1,2,3', expected four whole numbers"),
        (["--crop", "1,2,3.5,4"], "expected four whole numbers"),
    ],
)
def test_wrong_options_are_refused_before_the_model_is_loaded(arguments, words, monkeypatch, capsys):
    monkeypatch.setattr("unipixel_jax.infer.predictor.UniPixel.from_pretrained", lambda *_, **__: pytest.fail("the model was loaded"))
    fails(["segment", CLIP, "a", *arguments], capsys, words)


def test_an_unknown_format_is_a_wrong_argument(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["segment", CLIP, "a", "--format", "coco,voc"])
    assert ended.value.code == 2 and "'voc', expected some of gif, mp4, coco, yolo, labelme, cvat, label-studio, png" in capsys.readouterr().err


def test_a_picture_on_the_standard_input(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO((ASSETS / "photo.png").read_bytes())))
    assert main(["segment", "-", LARGE_SQUARE, *SHORT]) == 0
    assert "outputs/stdin-objects.png" in capsys.readouterr().out
    fails(["segment", "-", LARGE_SQUARE], capsys, "the standard input is empty")
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"no picture")))
    fails(["describe", "-", "--point", "1,2"], capsys, "stdin")
    monkeypatch.setattr(opening, "MAX_STDIN", 5)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"no picture")))
    fails(["segment", "-", LARGE_SQUARE], capsys, "the standard input has more than")


@pytest.fixture
def server(tmp_path):
    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def copyfile(self, source, outputfile):
            with contextlib.suppress(OSError):  # the other side may go away
                super().copyfile(source, outputfile)

        def do_GET(self):
            if self.path == "/elsewhere":
                self.send_response(302)
                self.send_header("Location", "ftp://127.0.0.1/photo.png")
                self.end_headers()
            else:
                super().do_GET()

    (tmp_path / "web").mkdir()
    shutil.copy(PHOTO, tmp_path / "web" / "my photo.png")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=tmp_path / "web")) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_addresses_are_read_where_they_are_allowed(server, monkeypatch, capsys):
    fails(["segment", f"{server}/my%20photo.png", LARGE_SQUARE], capsys, "is an address: only files are read without --allow-url")
    allowed = [LARGE_SQUARE, "--allow-url", *SHORT]
    assert main(["segment", f"{server}/my%20photo.png?size=large", *allowed]) == 0
    assert "outputs/my photo-objects.png" in capsys.readouterr().out
    fails(["segment", f"{server}/none.png", *allowed], capsys, "cannot be downloaded (HTTP Error 404")
    fails(["segment", f"{server}/elsewhere", *allowed], capsys, "expected an http or https address")
    fails(["segment", "rtsp://127.0.0.1/a", *allowed], capsys, "use `unipixel-jax track`")
    monkeypatch.setattr(opening, "MAX_DOWNLOAD", 1000)
    fails(["segment", f"{server}/my%20photo.png", *allowed], capsys, "which is the most that is downloaded")
