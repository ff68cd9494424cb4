"""Models by Hub id, torch directory or converted directory, against a server on the loopback interface that answers as the Hub does."""

import hashlib
import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import av
import jax
import numpy as np
import pytest
from fake_hub import Model, fake_hub
from filelock import FileLock
from huggingface_hub import ModelCard, constants
from PIL import Image

from unipixel_jax import Sam2Predictor, UniPixel
from unipixel_jax.cli import main
from unipixel_jax.convert import to_torch
from unipixel_jax.convert.manifest import Manifest
from unipixel_jax.core.stored import read
from unipixel_jax.demo import ASSETS
from unipixel_jax.errors import UserError
from unipixel_jax.hub.repository import look_up
from unipixel_jax.hub.resolve import resolve
from unipixel_jax.infer.loading import EMBEDDED, load
from unipixel_jax.processing.media import read_media

ROOT = Path(__file__).parents[2]
TORCH = ROOT / "tests" / "recordings" / "nano_a" / "checkpoint"
ID = "Some-Lab/Nano_1.0"
FIRST, SECOND = "a" * 40, "b" * 40
WEIGHTS = (TORCH / "model.safetensors").stat().st_size


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub with one model, which huggingface_hub is told to ask, and empty caches."""
    repository = tmp_path / "repository"
    shutil.copytree(TORCH, repository)
    (repository / "modeling.py").write_text("raise SystemExit('nobody runs this')")
    (repository / "onnx").mkdir()
    (repository / "onnx" / "model.safetensors").write_text("of another program")
    (repository / "pytorch_model.bin").write_text("the same weights once more")
    with fake_hub() as server:
        server.models[ID] = Model(repository, license="bsd-3-clause")
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.address + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "downloads"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("UNIPIXEL_JAX_CACHE", str(tmp_path / "cache"))
        yield server


def models(tmp_path):
    """The directories of converted models in the cache."""
    return sorted(path for path in (tmp_path / "cache").glob("models/*/*") if path.is_dir())


def written(folder):
    """All that lies in a folder, but for locks, which are empty, and the notes of huggingface_hub about a repository, which are no models."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".lock", ".metadata") and path.name != "CACHEDIR.TAG")


def arrays(directory):
    return {path: array.load((slice(None),) * len(array.shape), array.dtype) for path, array in read(directory / "params").items()}


def same(one, other):
    one, other = arrays(one), arrays(other)
    return one.keys() == other.keys() and all(one[path].dtype == other[path].dtype and np.array_equal(one[path], other[path]) for path in one)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    target = tmp_path_factory.mktemp("converted") / "model"
    assert main(["convert", "to-jax", str(TORCH), str(target)]) == 0
    return target


def test_a_hub_id_is_downloaded_and_converted_once(hub, tmp_path, converted, capsys):
    directory = resolve(ID)
    assert same(directory, converted) and models(tmp_path) == [directory]
    source = Manifest.read(directory).source
    assert (source["hub"], source["revision"], source["license"]) == (ID, FIRST, "bsd-3-clause")
    assert [hub.sent(name) for name in ("/model.safetensors", "/config.json", ".py", ".bin", "onnx/model.safetensors")] == [1, 1, 0, 0, 0]
    assert capsys.readouterr().err == "", "nothing is drawn where there is no terminal"
    before = len(hub.requests)
    assert resolve(ID) == directory
    assert len(hub.requests) == before + 1, "the Hub is asked for the commit alone"


def test_sam_2_alone_comes_from_the_file_of_its_repository(hub, tmp_path):
    source = ROOT / "tests" / "recordings" / "sam2_nano" / "checkpoint"
    shutil.copytree(source, tmp_path / "sam2")
    (tmp_path / "sam2" / "model.safetensors").write_text("in another library's layout")
    hub.models["some/sam2"] = Model(tmp_path / "sam2")
    predictor = Sam2Predictor.from_pretrained("some/sam2")
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    expected = Sam2Predictor.from_pretrained(source).segment(image, points=[(30, 20)], labels=[1])
    np.testing.assert_array_equal(predictor.segment(image, points=[(30, 20)], labels=[1]).low_res, expected.low_res)
    assert hub.sent("model.safetensors") == 0
    hub.down = 503
    assert Sam2Predictor.from_pretrained("some/sam2").sam2.config == predictor.sam2.config
    hub.down = 0
    with pytest.raises(UserError, match=r"some/sam2 has no revision 'v9'"):
        Sam2Predictor.from_pretrained("some/sam2", revision="v9")
    with pytest.raises(UserError, match="holds 0 files called"):
        Sam2Predictor.from_pretrained(ID)


def test_a_revision_has_a_directory_of_its_own(hub, tmp_path):
    first = resolve(ID)
    hub.models[ID].revisions |= {"main": SECOND, "v1": FIRST}
    assert resolve(ID) == first.with_name(SECOND)
    assert resolve(ID, revision="v1") == first and len(models(tmp_path)) == 2
    asked = len(hub.requests)
    assert resolve(ID, revision=SECOND) == first.with_name(SECOND)
    assert len(hub.requests) == asked, "a commit is what it is, so nobody is asked"


def test_a_directory_wins_over_a_hub_id(hub, tmp_path, monkeypatch, converted):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(converted, tmp_path / ID)
    assert resolve(ID) == Path(ID) and hub.requests == []
    with pytest.raises(UserError, match="is on this machine, where it has no revision 'main'"):
        resolve(ID, revision="main")


def test_a_torch_directory_is_converted_into_the_cache_and_again_when_it_changes(hub, tmp_path, converted):
    own = tmp_path / "own"
    shutil.copytree(TORCH, own)
    directory = resolve(own)
    assert same(directory, converted) and resolve(str(own)) == directory
    (own / "checkpoint-500").mkdir()
    assert resolve(own) == directory
    os.utime(own / "model.safetensors", ns=(1, 1))
    assert resolve(own) != directory and len(models(tmp_path)) == 2 and hub.requests == []
    assert {path.name for path in own.iterdir()} == {path.name for path in TORCH.iterdir()} | {"checkpoint-500"}


@pytest.mark.parametrize("cache", ["on", "off"])
def test_a_converted_directory_on_the_hub_is_used_as_it_is(hub, tmp_path, monkeypatch, cache):
    if cache == "off":
        monkeypatch.setenv("UNIPIXEL_JAX_CACHE", "")
    hub.models[ID].directory = EMBEDDED
    directory = resolve(ID)
    assert same(directory, EMBEDDED) and models(tmp_path) == []
    hub.down = 503
    assert resolve(ID) == directory
    assert load(resolve(ID)).directory == directory


def test_of_a_converted_directory_all_arrays_are_taken(hub, converted):
    hub.models[ID].directory = converted
    found = look_up(ID, None, None)
    assert found.converted and dict(found.files) == {name: path.stat().st_size for name, path in hub.models[ID].files().items()}
    assert sum(name.startswith("params/") for name in found.files) > 300


def test_pickles_are_taken_where_there_are_no_safetensors_beside_them(hub):
    (hub.models[ID].directory / "model.safetensors").unlink()
    found = look_up(ID, None, None).files
    assert "pytorch_model.bin" in found and not [name for name in found if name.endswith((".safetensors", ".py"))]


def test_without_the_hub_the_caches_serve(hub, tmp_path, monkeypatch):
    hub.models[ID].gated = 401
    directory = resolve(ID, token="let-me-in")
    hub.down = 503
    assert resolve(ID) == directory
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve(ID) == directory
    shutil.rmtree(tmp_path / "cache")
    again = resolve(ID)
    assert again == directory and models(tmp_path) == [directory], "it is converted again from what was downloaded"
    shutil.rmtree(tmp_path / "downloads")
    assert resolve(ID) == directory
    with pytest.raises(UserError, match="HF_HUB_OFFLINE forbids"):
        resolve(ID, revision="v1")


PHOTO = str(ASSETS / "photo.png")


def state(**values):
    return lambda hub, monkeypatch: [setattr(hub.models[ID], key, value) for key, value in values.items()]


def elsewhere(hub, monkeypatch):
    """Nobody listens on port 9 of the loopback interface."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


def other_model(hub, monkeypatch):
    path = hub.models[ID].directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "qwen2_5_vl"}))


WRONG = {
    # what is asked for, what is the matter, and what the message says
    "unknown": ("No/Such", None, "No/Such is no directory here, and no model at http://127.0.0.1"),
    "gated, not logged in": (ID, state(gated=401), f"{ID} is gated: ask for access at http"),
    "gated, no access": (ID, state(gated=403), "then log in with: hf auth login (or set HF_TOKEN)"),
    "forbidden": (ID, lambda hub, _: setattr(hub, "down", 403), "(403): check your rights"),
    "no network": (ID, elsewhere, "the Hub at http://127.0.0.1:9 cannot be reached"),
    "out of order": (ID, lambda hub, _: setattr(hub, "down", 503), "it answers with status 503"),
    "offline": (ID, lambda _, monkeypatch: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True), "HF_HUB_OFFLINE forbids to ask the Hub"),
    "another model": (ID, other_model, f"{ID} is another model (model_type 'qwen2_5_vl')"),
    "no weights": (ID, lambda hub, _: (hub.models[ID].directory / "config.json").unlink(), "holds no weights that can be used here"),
    "no hash": (ID, state(revisions={"main": "../../x"}), "names no commit"),
    "no name": ("Some-Lab/", None, "'Some-Lab/' does not exist here and is no Hub id"),
    "one word": ("UniPixel-3B-jax", None, "expected a directory, or OWNER/NAME"),
    "a path": ("/none/at/all", None, "does not exist here and is no Hub id"),
    "three words": ("a/b/c", None, "is no Hub id"),
    "odd characters": ("Some Lab/Nano", None, "is no Hub id"),
    "dots": ("../Nano", None, "is no Hub id"),
    "dashes": ("Some--Lab/Nano", None, "is no Hub id"),
    "empty": ("", None, "'' does not exist here"),
    "null": ("Some-Lab/\0", None, r"'Some-Lab/\x00' does not exist here"),
    "long": ("a/" + "b" * 95, None, "is no Hub id"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_in_one_line_and_nothing_is_written(case, hub, tmp_path, monkeypatch, capsys):
    name, change, words = WRONG[case]
    if change:
        change(hub, monkeypatch)
    for command in (["segment", PHOTO, "x", "--output-dir", str(tmp_path / "out"), f"--model={name}"], ["convert", "to-jax", name, str(tmp_path / "out")]):
        # the commands give an empty --model the small model's place, which is no error
        if name or command[0] == "convert":
            assert main(command) == 1
            lines = capsys.readouterr().err.splitlines()
            assert len(lines) == 1 and lines[0].startswith("error: ") and words in lines[0]
    assert models(tmp_path) == [] and not (tmp_path / "out").exists()
    assert {path.name for path in written(tmp_path / "downloads")} <= {"config.json", hub_blob(hub, "config.json")}


def hub_blob(hub, name):
    """The name under which huggingface_hub keeps the content of a file."""
    file = hub.models[ID].directory / name
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else name


@pytest.mark.parametrize(
    ("revision", "words"),
    [
        ("v9", f"{ID} has no revision 'v9'"),
        ("c" * 40, "has no revision"),
        ("", "the revision '' cannot be one"),
        ("../x", "cannot be one"),
        ("a b", "cannot be one"),
    ],
)
def test_a_revision_that_is_none(revision, words, hub, tmp_path, capsys):
    assert main(["convert", "to-jax", ID, str(tmp_path / "out"), f"--revision={revision}"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and words in lines[0]
    assert models(tmp_path) == [] and written(tmp_path / "downloads") == [] and not (tmp_path / "out").exists()


@pytest.mark.parametrize("token", ["", "two words", "line\n", "ü"])
def test_a_token_that_is_none_is_not_shown(hub, token):
    with pytest.raises(UserError, match="the token is empty or holds") as caught:
        resolve(ID, token=token)
    assert token == "" or token not in str(caught.value)
    assert hub.requests == []


def test_too_little_room_is_said_before_anything_is_downloaded(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=WEIGHTS + 1000))
    with pytest.raises(UserError) as caught:
        resolve(ID)
    total, download, conversion, free = (int(found.replace(",", "")) for found in re.findall(r"\d[\d,]{5,}", str(caught.value)))
    assert total == download + conversion and download == conversion > WEIGHTS and free == WEIGHTS + 1000
    assert f"in {tmp_path / 'downloads'} and" in str(caught.value) and f"in {tmp_path / 'cache' / 'models'}" in str(caught.value)
    assert written(tmp_path / "downloads") == [] and models(tmp_path) == []


def test_a_disk_that_fills_during_the_download(hub, tmp_path, full_disk):
    with full_disk(), pytest.raises(UserError, match=r"no space is left in .*downloads; free some, or move it with HF_HOME"):
        resolve(ID)
    assert models(tmp_path) == []
    assert resolve(ID) == models(tmp_path)[0]


def test_a_disk_that_fills_during_the_conversion(hub, tmp_path, full_disk):
    directory = resolve(ID)
    shutil.rmtree(directory)
    with (
        full_disk(),
        pytest.raises(UserError, match=r"could not be converted into .*cache/models/Some-Lab--Nano_1.0: .*move the cache with UNIPIXEL_JAX_CACHE"),
    ):
        resolve(ID)
    assert [path for path in directory.parent.iterdir() if path.suffix not in (".lock", ".ref")] == []


def test_a_cache_that_cannot_be_written(hub, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match=r"cache/models/Some-Lab--Nano_1.0 cannot be written .*: move the cache with UNIPIXEL_JAX_CACHE"):
        resolve(ID)
    assert hub.sent("model.safetensors") == 0


def test_a_connection_that_breaks_and_comes_back(hub, tmp_path):
    hub.broken_after = 100_000
    with pytest.raises(UserError, match=f"{ID}: the download broke off .*; try again") as caught:
        resolve(ID)
    assert "\n" not in str(caught.value) and models(tmp_path) == []
    hub.broken_after = None
    assert [resolve(ID)] == models(tmp_path)


def test_without_a_cache_a_conversion_must_be_asked_for(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("UNIPIXEL_JAX_CACHE", "")
    for name in (ID, TORCH):
        with pytest.raises(UserError, match=f"{name} is a torch checkpoint and UNIPIXEL_JAX_CACHE is empty.*unipixel-jax convert to-jax {name} "):
            resolve(name)
    assert hub.sent("model.safetensors") == 0
    assert main(["convert", "to-jax", ID, str(tmp_path / "own")]) == 0
    assert resolve(tmp_path / "own") == tmp_path / "own" and Manifest.read(tmp_path / "own").source["hub"] == ID


def test_who_comes_second_waits_and_takes_what_the_first_made(hub, tmp_path, converted, caplog):
    target = tmp_path / "cache" / "models" / ID.replace("/", "--") / FIRST
    target.parent.mkdir(parents=True)
    said, found = threading.Event(), []
    handler = logging.Handler()
    handler.emit = lambda record: said.set() if "waiting for it" in record.getMessage() else None
    logging.getLogger("unipixel_jax.hub.resolve").addHandler(handler)
    try:
        with FileLock(f"{target}.lock"):
            second = threading.Thread(target=lambda: found.append(resolve(ID)))
            second.start()
            assert said.wait(60) and found == []
            shutil.copytree(converted, target)
        second.join(60)
    finally:
        logging.getLogger("unipixel_jax.hub.resolve").removeHandler(handler)
    assert found == [target] and hub.sent("model.safetensors") == 0


def environment(hub, tmp_path):
    """The environment of a process that finds the Hub and the caches as a user's does."""
    own = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "hf"), "UNIPIXEL_JAX_CACHE": str(tmp_path / "cache"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    return {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))} | own


def test_two_processes_at_once_convert_once(hub, tmp_path):
    code = f"from unipixel_jax.hub.resolve import resolve\nprint(resolve({ID!r}))"
    both = [subprocess.Popen([sys.executable, "-c", code], env=environment(hub, tmp_path), stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=300)[0].strip() for process in both]
    assert [process.returncode for process in both] == [0, 0] and said[0] == said[1] == str(models(tmp_path)[0])
    assert hub.sent("/model.safetensors") == 1 and (tmp_path / "hf" / "hub").is_dir()
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_the_readme_runs_as_written(hub, tmp_path):
    hub.models["PolyU-ChenLab/UniPixel-3B"] = Model(tmp_path / "published")
    to_torch.convert(EMBEDDED, tmp_path / "published")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    python = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    command = next(line for line in text.splitlines() if line.startswith("unipixel-jax segment photo.jpg"))
    assert '"PolyU-ChenLab/UniPixel-3B"' in python and command.endswith("--model PolyU-ChenLab/UniPixel-3B")
    Image.fromarray(read_media(PHOTO, 1).frames[0]).save(tmp_path / "photo.jpg")
    write_video(tmp_path / "clip.mp4", read_media(ASSETS / "clip.gif", 4).frames)
    seen = "print(prediction.objects[0].masks.shape, prediction.objects[0].masks.dtype)"
    code = f"{python}\n{seen}\nfrom unipixel_jax.cli import main\nraise SystemExit(main({shlex.split(command)[1:]!r}))"
    ran = subprocess.run([sys.executable, "-c", code], env=environment(hub, tmp_path), cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr
    height, width = read_media(tmp_path / "clip.mp4", 1).frames.shape[1:3]
    assert f"(4, {height}, {width}) bool" in ran.stdout and (tmp_path / "outputs" / "photo-objects.png").is_file()
    assert ran.stderr == "" and hub.sent("/model.safetensors") == 1


def write_video(path, frames):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.height, stream.width = frames.shape[1:3]
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())


def test_a_spinner_is_told_how_far_it_is(hub, caplog):
    with caplog.at_level(logging.DEBUG, "unipixel_jax"):
        resolve(ID)
    said = [record.getMessage() for record in caplog.records]
    assert any(re.fullmatch(rf"downloading {ID}: [\d.]+ of [\d.]+ GB", line) for line in said)
    assert sum(line.startswith("converting: ") for line in said) > 10


@pytest.mark.parametrize("dtype", [None, "float32"])
def test_a_saved_model_is_loaded_as_it_was(tmp_path, dtype):
    model = UniPixel.from_pretrained(dtype=dtype)
    model.save_pretrained(tmp_path / "saved")
    again = UniPixel.from_pretrained(tmp_path / "saved")
    assert again.config == model.config and again.loaded.end_tokens == model.loaded.end_tokens
    assert same_model(again, model)
    if dtype is None:
        stored = {path: (array.shape, array.dtype) for path, array in read(EMBEDDED / "params").items()}
        assert {path: (array.shape, array.dtype) for path, array in read(tmp_path / "saved" / "params").items()} == stored
    card = ModelCard.load(tmp_path / "saved" / "README.md").data
    assert (card.library_name, card.pipeline_tag, card.license, card.base_model) == ("unipixel_jax", "image-segmentation", "other", None)


def same_model(one, other):
    pairs = zip(jax.tree.leaves(one.loaded.model), jax.tree.leaves(other.loaded.model), strict=True)
    return all(a.dtype == b.dtype and np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)


def test_a_model_card_names_the_model_that_was_downloaded(hub, tmp_path, full_disk):
    model = UniPixel(load(resolve(ID)))
    model.save_pretrained(tmp_path / "saved")
    card = ModelCard.load(tmp_path / "saved" / "README.md")
    assert (card.data.base_model, card.data.license) == (ID, "bsd-3-clause") and "unipixel" in card.data.tags and FIRST in card.text
    assert str(tmp_path) not in (tmp_path / "saved" / "manifest.json").read_text()
    with pytest.raises(UserError, match="saved exists and is not empty: choose another directory"):
        model.save_pretrained(tmp_path / "saved")
    with full_disk(), pytest.raises(UserError, match="could not be written"):
        model.save_pretrained(tmp_path / "other")
    assert not (tmp_path / "other").exists()
    assert same_model(UniPixel(load(resolve(tmp_path / "saved"))), model)


def test_a_model_that_was_not_loaded_has_no_files_to_save(tmp_path):
    model = UniPixel(replace(load(EMBEDDED), directory=None))
    with pytest.raises(UserError, match="comes from no directory"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
