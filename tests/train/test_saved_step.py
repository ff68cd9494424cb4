"""The file that keeps a step that was not finite can be read back, and reading it runs nothing in it."""

import dataclasses
import io
import json
import os
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest
from micro_run import MODEL, micro_config, micro_start

from unipixel_jax.data.pipeline import DrawSample, open_loader, open_mixture
from unipixel_jax.errors import UserError
from unipixel_jax.processing.tokenizer import Tokenizer
from unipixel_jax.train.reproduce import reproduce
from unipixel_jax.train.saved_step import SavedStep, read_saved_step, write_saved_step


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A step with a batch of images in bfloat16, and one without clips."""
    start = micro_start(tmp_path_factory.mktemp("start") / "model")
    config = micro_config(start, lora=None, sample_objects=None)
    draw = DrawSample(Tokenizer.from_directory(start), MODEL, dataclasses.replace(config.data.draw, image_size=128), None, "bfloat16")
    mixture = open_mixture("shapes_image", "data", 2, 0, "train", config.data.filters)
    with open_loader(mixture, draw, dataclasses.replace(config.data.loader, workers=0), buckets=config.data.buckets) as loader:
        batch = next(loader).arrays
    return SavedStep(3, 6, str(start), config, MODEL, (batch, dataclasses.replace(batch, clips=None)))


@pytest.fixture
def file(kept, tmp_path):
    write_saved_step(tmp_path / "step.npz", kept)
    return tmp_path / "step.npz"


def leaves(value):
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from leaves(getattr(value, field.name))
    elif isinstance(value, tuple):
        for item in value:
            yield from leaves(item)
    else:
        yield value


def test_everything_comes_back(kept, file):
    again = read_saved_step(file)
    assert (again.config, again.model_config, again.step, again.total, again.start) == (kept.config, kept.model_config, 3, 6, kept.start)
    pairs = list(zip(leaves(again.batches), leaves(kept.batches), strict=True))
    assert all(a.dtype == b.dtype and a.tobytes() == b.tobytes() and a.shape == b.shape if isinstance(a, np.ndarray) else a == b for a, b in pairs)
    assert {a.dtype for a, _ in pairs if isinstance(a, np.ndarray)} >= {np.dtype(ml_dtypes.bfloat16), np.dtype(bool), np.dtype(np.int32)}


def rewritten(path, change, compression=zipfile.ZIP_STORED):
    """The file with other parts: name to bytes."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    change(parts)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


def about(change):
    """A change of the JSON part."""

    def changed(parts):
        raw = json.loads(np.load(io.BytesIO(parts["about.npy"])).tobytes())
        text = change(raw)
        text = json.dumps(raw) if text is None else text
        parts["about.npy"] = as_npy(np.frombuffer(text.encode(), np.uint8))

    return changed


def as_npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


class Hostile:
    """Leaves a trace where it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch unpickled",)


HUGE = b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '<i4', 'fortran_order': False, 'shape': (1000000000000,), }".ljust(117) + b"\n"

DAMAGES = {
    "a pickle in an array": lambda parts: parts.update({"0.npy": as_npy(np.array([Hostile()], object))}),
    "an array without end": lambda parts: parts.update({"0.npy": HUGE}),
    "an array of text": lambda parts: parts.update({"0.npy": as_npy(np.array(["a"]))}),
    "a lost array": lambda parts: parts.pop("0.npy"),
    "no JSON part": lambda parts: parts.pop("about.npy"),
    "nesting without end": about(lambda raw: "[" * 100_000),
    "a list": about(lambda raw: "[]"),
    "much text": about(lambda raw: " " * (9 << 20)),
    "a step that is text": about(lambda raw: raw.update(step="3")),
    "a lost field": about(lambda raw: raw["config"].update(seed=None) or raw["config"].__delitem__("seed")),
    "another field": about(lambda raw: raw["config"].update(run="rm")),
    "a million layers": about(lambda raw: raw["model_config"]["text"].update(num_hidden_layers=10**6)),
    "a rate that is none": about(lambda raw: raw["config"]["optim"].update(learning_rate="fast")),
    "a rate that is not finite": about(lambda raw: raw["config"]["optim"].update(learning_rate=float("inf"))),
    "an array that is not there": about(lambda raw: raw["batches"][0].update(labels={"array": 99})),
    "an array without a number": about(lambda raw: raw["batches"][0].update(labels={})),
    "a number for an array": about(lambda raw: raw["batches"][0].update(labels=1)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_hostile_file_is_one_line(file, damage, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rewritten(file, DAMAGES[damage])
    with pytest.raises(UserError, match=r"cannot be read .*expected the file that a stopped run named") as caught:
        list(reproduce(tmp_path, file))
    assert "\n" not in str(caught.value) and not (tmp_path / "unpickled").exists()


def test_a_packed_file_is_refused(file):
    rewritten(file, lambda parts: parts.update({"0.npy": bytes(50 << 20)}), zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="its parts are larger than the file"):
        read_saved_step(file)


@pytest.mark.parametrize("content", [pickle.dumps({"config": Hostile()}), b"", b"PK\x03\x04", as_npy(np.array([Hostile()], object))])
def test_another_file_is_refused_and_nothing_in_it_run(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "not_finite_step_3.pkl").write_bytes(content)
    with pytest.raises(UserError, match="expected the file that a stopped run named"):
        list(reproduce(tmp_path, tmp_path / "not_finite_step_3.pkl"))
    assert not (tmp_path / "unpickled").exists()


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, message in (("pipe", "is a pipe"), ("nothing", "does not exist"), ("", "is a folder")):
        with pytest.raises(UserError, match=message):
            read_saved_step(tmp_path / name)
