"""The command as people type it: results in files, and one clear line, without a traceback, for what cannot be done."""

import json
import logging
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from unipixel_jax.cli import COMMANDS, main
from unipixel_jax.demo import ASSETS
from unipixel_jax.errors import UserError
from unipixel_jax.infer.visualize import draw_objects
from unipixel_jax.processing.media import read_media
from unipixel_jax.processing.prompts import Box, Point
from unipixel_jax.processing.rle import decode_mask

TORCH_CHECKPOINT = Path(__file__).parents[1] / "recordings" / "nano_a" / "checkpoint"


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    monkeypatch.setenv("UNIPIXEL_JAX_CACHE", "")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    target = tmp_path_factory.mktemp("cli") / "model"
    assert main(["convert", "to-jax", str(TORCH_CHECKPOINT), str(target)]) == 0
    return target


def test_a_photo_becomes_an_overlay_a_json_and_masks(directory, tmp_path, capsys):
    out = ["--output-dir", str(tmp_path), "--json", str(tmp_path / "a.json"), "--masks", str(tmp_path / "a.npz"), "--max-new-tokens", "2"]
    assert main(["segment", str(ASSETS / "photo.png"), "The ball <|seg|> and the house <|seg|>", "--model", str(directory), *out]) == 0
    report = json.loads((tmp_path / "a.json").read_text())
    masks = np.load(tmp_path / "a.npz")["masks"]
    with Image.open(ASSETS / "photo.png") as photo, Image.open(tmp_path / "photo-objects.png") as overlay:
        (width, height), drawn = photo.size, overlay.size
    assert len(report["objects"]) == len(masks) >= 2 and masks.shape[2:] == (height, width)
    assert [item["areas"] for item in report["objects"]] == masks.sum((2, 3)).tolist()
    assert drawn[0] >= width
    printed = capsys.readouterr()
    assert str(tmp_path / "photo-objects.png") in printed.out
    assert printed.err == "" if report["found"] else printed.err.startswith("no such object: ")


@pytest.mark.parametrize("form", ["gif", "mp4"])
def test_a_clip_becomes_an_animation(directory, tmp_path, form):
    out = ["--output-dir", str(tmp_path), "--format", form, "--sample-frames", "3", "--max-new-tokens", "1"]
    assert main(["segment", str(ASSETS / "clip.gif"), "The boat <|seg|>", "--model", str(directory), *out]) == 0
    assert (tmp_path / f"clip-objects.{form}").stat().st_size > 1000


def test_a_question_about_a_point_and_a_box(directory, tmp_path, capsys):
    where = ["--point", "30,40", "--box", "10,10,60,50", "--output-dir", str(tmp_path), "--max-new-tokens", "2"]
    assert main(["ask", str(ASSETS / "photo.png"), "Is <region> left of <region>?", "--model", str(directory), *where, "--attention", "xla_chunked"]) == 0
    assert "1" in capsys.readouterr().out


def test_an_answer_and_the_list_below_it_count_objects_alike(tmp_path, capsys):
    """The small model answers that the blue square is larger than the green triangle, and calls it [1]."""
    where = ["--point", "74,147", "--point", "124,222", "--output-dir", str(tmp_path), "--json", str(tmp_path / "a.json")]
    assert main(["ask", str(ASSETS / "photo.png"), "Which is larger, <region> or <region>?", *where]) == 0
    said, triangle, square, path = capsys.readouterr().out.splitlines()
    assert said == "[1] is larger." and triangle.startswith("[0] ") and square.startswith("[1] ")
    areas = [int(re.match(r"\[\d\] (\d+) pixels", line)[1]) for line in (triangle, square)]
    report = json.loads((tmp_path / "a.json").read_text())
    assert [(item["number"], item["areas"][0]) for item in report["objects"]] == [(0, areas[0]), (1, areas[1])] and areas[0] < areas[1]
    clip = read_media(ASSETS / "photo.png")
    with Image.open(path) as overlay:
        drawn = draw_objects(clip.frames[0], [decode_mask(item["masks"][0]) for item in report["objects"]], [0, 1])
        np.testing.assert_array_equal(np.asarray(overlay), drawn)


PHOTO = str(ASSETS / "photo.png")
WRONG = {
    # arguments after the command's name ({model}: a converted directory, {tmp}: a writable folder), and what the message says
    "no such media": (["segment", "{tmp}/none.png", "x", "--model", "{model}"], "none.png"),
    "broken photo": (["segment", "{tmp}/broken.png", "x", "--model", "{model}"], "broken.png"),
    "broken video": (["segment", "{tmp}/broken.mp4", "x", "--model", "{model}"], "broken.mp4"),
    "folder without frames": (["segment", "{tmp}/empty", "x", "--model", "{model}"], "empty"),
    "one pixel high": (["segment", "{tmp}/line.png", "x", "--model", "{model}"], "factor of 200"),
    "empty prompt": (["segment", PHOTO, " ", "--model", "{model}"], "prompt is empty"),
    "no such model": (["segment", PHOTO, "x", "--model", "{tmp}/none"], "none"),
    "a torch checkpoint": (["segment", PHOTO, "x", "--model", str(TORCH_CHECKPOINT)], "unipixel-jax convert to-jax"),
    "unwritable": (["segment", PHOTO, "x", "--model", "{model}", "--output-dir", "{tmp}/broken.png/out"], "cannot be written"),
    "masks elsewhere": (["segment", PHOTO, "x", "--model", "{model}", "--masks", "{tmp}/a.txt"], "must end in .npz"),
    "attention": (["segment", PHOTO, "x", "--model", "{model}", "--attention", "triton"], "expected one of xla, xla_chunked"),
    "attention that is not for here": (["segment", PHOTO, "x", "--model", "{model}", "--attention", "cudnn"], "'cudnn' cannot do"),
    "point": (["ask", PHOTO, "<region>?", "--model", "{model}", "--point", "3"], "expected 2 numbers"),
    "recording": (["parity", "{tmp}/empty"], "empty"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_in_one_line(name, directory, tmp_path, capsys):
    for broken in ("broken.png", "broken.mp4"):
        (tmp_path / broken).write_bytes(b"\x89PNG\r\n\x1a\nno image")
    (tmp_path / "empty").mkdir()
    Image.new("RGB", (300, 1)).save(tmp_path / "line.png")
    arguments, words = WRONG[name]
    before = sorted(tmp_path.rglob("*"))
    place = {"model": directory, "tmp": tmp_path}
    outputs = [] if "--output-dir" in arguments or arguments[0] == "parity" else ["--output-dir", str(tmp_path / "out")]
    assert main([a.format(**place) for a in arguments] + outputs) == 1
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and words in lines[0] and "Traceback" not in captured.err
    assert sorted(tmp_path.rglob("*")) == before, "something was left behind"


def test_verbose_shows_where(tmp_path, capsys):
    assert main(["segment", str(tmp_path / "none.png"), "x", "--model", str(tmp_path / "none"), "--verbose"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("before", [["train", "{config}"], ["train", "{config}", "--steps", "1"], ["plan", "{config}", "--topology", "v5e:2x2"]])
@pytest.mark.parametrize("place", [1, 2, None])
def test_verbose_shows_where_among_fields(before, place, tmp_path, capsys):
    arguments = [word.format(config=tmp_path / "none.py") for word in before]
    assert main(arguments) == 1
    assert "Traceback" not in capsys.readouterr().err
    arguments.insert(len(arguments) if place is None else place, "--verbose")
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert "Traceback" in said and said.endswith("none.py does not exist: expected a Python file with get_config(), as those in configs/\n")


@pytest.mark.parametrize("command", ["train", "plan"])
def test_verbose_is_in_the_help(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert "--verbose" in capsys.readouterr().out


def test_points_and_boxes_are_taken_in_their_order(tmp_path, monkeypatch, capsys):
    def ask(media, question, references, **_):
        raise UserError(f"asked about {references}")

    monkeypatch.setattr("unipixel_jax.infer.predictor.UniPixel.from_pretrained", lambda *_, **__: SimpleNamespace(ask=ask))
    where = ["--box", "1,2,3,4", "--point", "5,6,7", "--box", "0,0,9,9,1", "--output-dir", str(tmp_path)]
    assert main(["ask", PHOTO, "Are <region>, <region> and <region> alike?", *where]) == 1
    assert capsys.readouterr().err == f"error: asked about {[Box(1.0, 2.0, 3.0, 4.0), Point(5.0, 6.0, 7), Box(0.0, 0.0, 9.0, 9.0, 1)]}\n"


def on_a_terminal(monkeypatch):
    """The standard error is a terminal, the standard output a file."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)


def warn(*_):
    logging.getLogger("unipixel_jax.data.loader").warning("a sample is replaced")
    print("the answer")
    return 0


def test_warnings_stay_on_a_terminal_and_answers_go_where_they_belong(monkeypatch, capsys):
    on_a_terminal(monkeypatch)
    monkeypatch.setattr("unipixel_jax.infer.cli._demo", warn)
    assert main(["demo"]) == 0
    out, err = capsys.readouterr()
    lines = re.split(r"[\r\n]|\x1b\[[\d;?]*\w", err)
    assert "a sample is replaced" in lines, "it is a line of its own, not one that changes"
    assert any("starting ..." in line for line in lines)
    assert out == "the answer\n"


def test_no_changing_line_beside_the_bar_of_a_training(monkeypatch, capsys):
    on_a_terminal(monkeypatch)
    monkeypatch.setattr("unipixel_jax.train.cli._train", warn)
    assert main(["train", "config.py"]) == 0
    assert capsys.readouterr().err == "a sample is replaced\n"
    logger = logging.getLogger("unipixel_jax")
    assert logger.propagate and not logger.handlers and logger.level == logging.NOTSET


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_learns_every_command_and_its_options(shell, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--print-completion", shell])
    script = capsys.readouterr().out
    assert ended.value.code == 0
    assert all(word in script for word in [*COMMANDS, "to-jax", "reproduce", "max-new-tokens", "pallas_tpu", "unipixel-jax"])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_help_and_takes_verbose_before_it(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0 and "--verbose" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["--verbose", name, "--no-such-option", "--help=3"])
    said = capsys.readouterr().err.strip().splitlines()
    assert ended.value.code == 2 and said[0].startswith("usage: ") and "error: " in said[-1]


def test_options_that_nobody_knows_are_named_by_the_command_that_got_them(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["train", "export", "run", "out", "--stepp", "3"])
    assert ended.value.code == 2 and "unipixel-jax train export: error: unrecognized arguments: --stepp 3" in capsys.readouterr().err
