"""Commands replace no file of the user's, and find out before the work what cannot be written."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unipixel_jax.cli import main
from unipixel_jax.demo import ASSETS
from unipixel_jax.infer.loading import EMBEDDED

CASES = Path(__file__).parents[1] / "cases"
PROMPT = "Please segment the large blue square."
SHORT = ("--max-new-tokens", "12", "--sample-frames", "3")


@pytest.fixture(autouse=True)
def own_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("UNIPIXEL_JAX_CACHE", "")
    monkeypatch.chdir(tmp_path)
    for name in ("photo.png", "clip.gif"):
        shutil.copy(ASSETS / name, name)


def contents(folder):
    return {path: path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


def refused(arguments, capsys, *words):
    """The command ends with one line, before a model is opened, and leaves all as it was."""
    before = contents(".")
    assert main([*arguments, "--model", "no such model"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and "should not happen" not in lines[0]
    assert all(word in lines[0] for word in words), lines[0]
    assert contents(".") == before


@pytest.mark.parametrize("name", ["photo.png", "clip.gif"])
def test_the_media_is_not_replaced_by_its_overlay(name):
    before = Path(name).read_bytes()
    for _ in range(2):
        assert main(["segment", name, PROMPT, "--output-dir", ".", *SHORT]) == 0
        assert sorted(os.listdir(".")) == sorted(["photo.png", "clip.gif", name.replace(".", "-objects.")])
        assert Path(name).read_bytes() == before


@pytest.mark.parametrize("option", [["--json", "photo.png"], ["--json", "./photo.png"], ["--json", "link.png"], ["--json", "sub/../photo.png"]])
def test_a_result_does_not_replace_what_is_read(option, capsys):
    os.mkdir("sub")
    os.symlink("photo.png", "link.png")
    refused(["segment", "photo.png", PROMPT, *option], capsys, "is what is to be read")


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--json", "."], "is a folder"),
        (["--json", "/"], "is a folder"),
        (["--json", "/dev/null"], "is a pipe, socket or device"),
        (["--json", ""], "is a folder"),
        (["--json", "a.npz", "--masks", "a.npz"], "choose two names"),
        (["--json", "photo.png/a.json"], "is not a folder"),
        (["--output-dir", "photo.png"], "is not a folder"),
        (["--json", "n" * 300], "cannot be written"),
        (["--max-new-tokens", "0"], "--max-new-tokens is 0"),
        (["--sample-frames", "-1"], "--sample-frames is -1"),
    ],
)
def test_what_cannot_be_written_is_refused_before_the_work(options, word, capsys):
    refused(["segment", "photo.png", PROMPT, *options], capsys, word)


@pytest.mark.parametrize(
    "given", ["--point=1,2,nan", "--point=inf,2", "--box=1,2,3,4,inf", "--box=1,2,3,1e400", "--point=1,2,0.7", "--point=1,2,3,4", "--box=,,,"]
)
def test_references_are_finite_numbers(given, capsys):
    refused(["ask", "photo.png", "What is <region>?", given], capsys, "is not a reference", given.partition("=")[2])


@pytest.mark.parametrize("command", ["segment", "ask"])
def test_a_prompt_that_is_not_utf8(command, capsys):
    refused([command, "photo.png", os.fsdecode(b"caf\xe9")], capsys, "is not UTF-8 (at character 4)")


def test_the_folder_here_gives_its_name(monkeypatch, tmp_path):
    os.mkdir("walk")
    for number in range(3):
        shutil.copy("photo.png", f"walk/{number}.png")
    monkeypatch.chdir("walk")
    assert main(["segment", ".", PROMPT, "--json", "../a.json", "--output-dir", "..", *SHORT]) == 0
    assert (tmp_path / "walk-objects.gif").is_file() and json.loads((tmp_path / "a.json").read_text())["frames"] == [0, 1, 2]


@pytest.mark.parametrize("stem", ["長" * 80, "x" * 249, "e\u0301" * 80])
def test_names_of_any_length(stem):
    name = f"{stem}.png"
    shutil.copy("photo.png", name)
    assert main(["segment", name, PROMPT, "--json", "a.json", *SHORT]) == 0
    (overlay,) = os.listdir("outputs")
    assert overlay.endswith("-objects.png") and overlay[:20] == stem[:20] and os.path.getsize("a.json") > 100


def test_a_name_that_is_no_text_in_a_terminal_that_knows_ascii():
    name = os.fsdecode(b"caf\xe9\x1b[31m.png")
    shutil.copy("photo.png", name)
    environment = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "unipixel_jax.cli", "segment", os.fsencode(name), PROMPT.encode()]
    found = subprocess.run([*command, *SHORT], capture_output=True, env=environment)
    assert found.returncode == 0 and b"Traceback" not in found.stderr, found.stderr
    assert len(os.listdir("outputs")) == 1


def test_a_turned_photo_is_answered_upright_or_as_stored(capsys):
    photo = str(CASES / "exif_turned_photo" / "exif_phone.jpg")
    assert main(["ask", photo, "What is <region>?", "--point", "109,99", *SHORT]) == 0
    assert "red circle" in capsys.readouterr().out
    assert main(["ask", photo, "What is <region>?", "--point", "109,99", "--as-stored", *SHORT]) == 0
    assert "red circle" not in capsys.readouterr().out


def test_masks_without_objects_keep_the_size(tmp_path):
    Image.new("RGB", (60, 40)).save("black.png")
    assert main(["segment", "black.png", "Hello", "--masks", "a.npz", "--max-new-tokens", "1"]) == 0
    with np.load("a.npz") as found:
        assert found["masks"].shape == (0, 1, 40, 60) and found["masks"].dtype == bool and found["scores"].shape == (0, 1)


def test_the_model_that_ships_lies_in_a_handful_of_files():
    assert len(list(EMBEDDED.rglob("*"))) <= 8 and not [path for path in EMBEDDED.rglob(".*")]
