"""Damaged checkpoints are noticed and set aside, and an older one is read instead."""

import json
import logging
import shutil
from pathlib import Path

import jax
import pytest
from toy_runs import RUN_INFO, abstract, divided, each_file, flip, make_state, names, restored, same_bits, saved

from unipixel_jax.errors import UserError
from unipixel_jax.train.checkpoints.manager import Best, Checkpoints
from unipixel_jax.train.checkpoints.manifest import _digest
from unipixel_jax.train.checkpoints.reader import read_arrays


def truncate(step):
    each_file(step, lambda path: path.write_bytes(path.read_bytes()[:-20]))


def edit_manifest(step, change):
    path = step / "manifest" / "metadata"
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))


def forge(step, change):
    """A manifest that someone wrote: changed, with a checksum that fits."""

    def changed(raw):
        change(raw)
        raw["checksum"] = _digest({key: value for key, value in raw.items() if key != "checksum"})

    edit_manifest(step, changed)


def entry(**changes):
    return lambda raw: raw["arrays"]["trained/sam2/stages/0/w"].update(changes)


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


FORGED = {
    "objects for numbers": entry(dtype="O"),
    "a dtype that is none": entry(dtype=["float32"]),
    "a structured dtype": entry(dtype="i4,O"),
    "a negative size": entry(shape=[-1]),
    "a size that is no number": entry(shape=["16"]),
    "true for a size": entry(shape=[True]),
    "sizes without end": entry(shape=[1] * 1000),
    "no shape": lambda raw: raw["arrays"]["trained/sam2/stages/0/w"].pop("shape"),
    "a fingerprint that is text": entry(fingerprint="1"),
    "no arrays": lambda raw: raw.pop("arrays"),
    "a list of arrays": lambda raw: raw.update(arrays=[1]),
    "text about the run": lambda raw: raw.update(run_info="x"),
    "another field about the run": lambda raw: raw["run_info"].update(other=1),
    "an identity that is a list": lambda raw: raw["run_info"].update(identity=[1]),
    "a step that is none": lambda raw: raw.update(step="30"),
    "deep nesting": lambda raw: raw.update(data=nested(300)),
}


DAMAGES = {
    "truncated files": truncate,
    "flipped bits": flip,
    "lost files": lambda step: each_file(step, Path.unlink),
    "lost arrays": lambda step: shutil.rmtree(step / "state"),
    "another number in an array": lambda step: edit_manifest(step, lambda raw: raw["arrays"]["trained/sam2/stages/0/w"].update(fingerprint=1)),
    "a cut manifest": lambda step: (step / "manifest" / "metadata").write_text('{"format": 1'),
    "no manifest": lambda step: shutil.rmtree(step / "manifest"),
    "an empty directory": lambda step: (shutil.rmtree(step), step.mkdir()),
    "nesting without end": lambda step: (step / "manifest" / "metadata").write_text("[" * 100_000),
    "a number that is none": lambda step: (step / "manifest" / "metadata").write_text('{"format": NaN}'),
    "bytes that are no text": lambda step: (step / "manifest" / "metadata").write_bytes(b"\xff\xfe{}"),
    "a list": lambda step: (step / "manifest" / "metadata").write_text("[1]"),
    **{name: lambda step, change=change: forge(step, change) for name, change in FORGED.items()},
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_read(tmp_path, caplog, damage):
    saved(tmp_path, 10, 20, 30)
    DAMAGES[damage](tmp_path / "30")
    with caplog.at_level(logging.WARNING, "unipixel_jax"), Checkpoints(tmp_path, RUN_INFO, 5) as checkpoints:
        found = checkpoints.restore(abstract(make_state()))
        assert (found.step, found.data) == (20, {"position": 20}) and same_bits(found.state, make_state(20))
        checkpoints.save(30, make_state(30), {"position": 30})
        assert checkpoints.restore(abstract(make_state())).step == 30
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("unipixel_jax")]
    assert len(ours) == 1 and "is damaged" in ours[0] and "damaged-30" in ours[0] and "\n" not in ours[0]
    assert names(tmp_path) == ["10", "20", "30", "damaged-30"]


def test_a_damaged_large_array_is_noticed(tmp_path):
    """Orbax reads it by another way, and fails otherwise."""
    target = divided(make_state(rows=80_000), 8)
    with Checkpoints(tmp_path, RUN_INFO, 5) as checkpoints:
        for step in (10, 20):
            checkpoints.save(step, jax.tree.map(lambda a, t: jax.device_put(a, t.sharding), make_state(step, rows=80_000), target), None)
    each_file(tmp_path / "20", lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]))
    assert restored(tmp_path, target).step == 10


def test_a_machine_without_memory_is_not_taken_for_damage(tmp_path, monkeypatch):
    saved(tmp_path, 10)

    def restore(*args, **kwargs):
        try:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        except jax.errors.JaxRuntimeError as error:
            raise Exception("Encountered error while reading array index") from error

    monkeypatch.setattr("orbax.checkpoint.PyTreeCheckpointHandler.restore", restore)
    with pytest.raises(Exception, match="reading array index"):
        restored(tmp_path)
    assert names(tmp_path) == ["10"]


def test_a_run_does_not_start_anew_where_all_checkpoints_are_damaged(tmp_path):
    saved(tmp_path, 10, 20)
    flip(tmp_path / "10")
    truncate(tmp_path / "20")
    with pytest.raises(UserError, match="all 2 checkpoints are damaged"):
        restored(tmp_path)
    assert names(tmp_path) == ["damaged-10", "damaged-20"]


@pytest.mark.parametrize("shape", [[1 << 40], [1 << 20, 1 << 20], [600_000_000]])
def test_sizes_that_only_a_manifest_gives_are_compared_with_the_files(tmp_path, shape):
    saved(tmp_path, 10)
    forge(tmp_path / "10", entry(shape=shape))
    with pytest.raises(UserError, match=r"10 is damaged \(its manifest names arrays of [0-9,]+ bytes, its files have"):
        read_arrays(tmp_path, None, "trained/")


@pytest.mark.parametrize("content", ["[" * 100_000, "[1]", '{"iou": "best"}', "{", '{"iou": null}'])
def test_metrics_that_are_damaged_stop_nothing_or_are_one_line(tmp_path, content):
    with Checkpoints(tmp_path, RUN_INFO, 2, Best("iou", True)) as checkpoints:
        checkpoints.save(10, make_state(10), None, {"iou": 0.5})
    for file in (tmp_path / "10" / "metrics").iterdir():
        file.write_text(content)
    try:
        with Checkpoints(tmp_path, RUN_INFO, 2, Best("iou", True)) as checkpoints:
            assert checkpoints.restore(abstract(make_state())).step == 10
            checkpoints.save(20, make_state(20), None, {"iou": 0.6})
            checkpoints.wait()
            assert 20 in checkpoints.steps
    except UserError as error:
        assert "\n" not in str(error) and str(tmp_path) in str(error)
