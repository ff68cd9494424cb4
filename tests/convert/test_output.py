"""`--force` replaces what a conversion wrote and nothing else, at once, and a killed process loses nothing of the old directory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_checkpoints import write_checkpoint

from unipixel_jax.convert import output
from unipixel_jax.convert.output import new_directory, require_free
from unipixel_jax.core.files import aside_of
from unipixel_jax.errors import UserError


def converted(path, mark="old"):
    """Write files with the names of those that a conversion to JAX leaves."""
    (path / "params" / "text.embed.weight").mkdir(parents=True)
    for name in ("manifest.json", "config.json", "tokenizer.json", "params/_METADATA", "params/text.embed.weight/.zarray", "params/text.embed.weight/0.0"):
        (path / name).write_text(mark)
    return path


def sharded(path):
    """A checkpoint of torch in two files."""
    path.mkdir()
    placed = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    for name in ("config.json", "generation_config.json", *placed.values()):
        (path / name).write_text("old")
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    return path


def replace(target, force=True):
    with new_directory(target, force, 0) as directory:
        (directory / "config.json").write_text("new")


def tree(path):
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def single(path):
    """A checkpoint of torch in one file."""
    return write_checkpoint(path, {"a": np.ones(1, np.float32)})


@pytest.mark.parametrize("make", [converted, sharded, single])
def test_what_a_conversion_wrote_is_replaced(tmp_path, make):
    replace(make(tmp_path / "out"))
    assert tree(tmp_path) == {"out/config.json": b"new"}


FOREIGN = {
    "notes": lambda path: (path / "notes.txt").write_text("mine"),
    "a hidden file": lambda path: (path / ".env").write_text("mine"),
    "a folder": lambda path: (path / "photos").mkdir(),
    "a folder by one of our names": lambda path: ((path / "tokenizer.json").unlink(missing_ok=True), (path / "tokenizer.json").mkdir()),
    "a link": lambda path: (path / "merges.txt").symlink_to(path / "config.json"),
    "weights that no index lists": lambda path: (path / "theirs.safetensors").write_text("mine"),
}


@pytest.mark.parametrize("make", [converted, sharded])
@pytest.mark.parametrize("add", FOREIGN.values(), ids=FOREIGN)
def test_a_file_of_the_users_is_named_and_kept(tmp_path, make, add):
    target = make(tmp_path / "out")
    add(target)
    before = tree(tmp_path)
    with pytest.raises(UserError, match=r"out holds \S+, which no conversion wrote"):
        replace(target)
    assert tree(tmp_path) == before and [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["params/notes.txt", "params/text.embed.weight/photo.png", "params/own/deep/file.txt"])
def test_a_file_of_the_users_among_the_arrays_is_named_and_kept(tmp_path, name):
    target = converted(tmp_path / "out")
    (target / name).parent.mkdir(parents=True, exist_ok=True)
    (target / name).write_text("mine")
    with pytest.raises(UserError, match=f"holds {name}"):
        replace(target)
    assert (target / name).read_text() == "mine"


@pytest.mark.parametrize("files", [["photo.png"], ["config.json"], ["tokenizer.json", "config.json"], ["manifest.json"], ["params"]])
def test_a_folder_that_is_no_converted_model_is_kept(tmp_path, files):
    target = tmp_path / "out"
    target.mkdir()
    for name in files:
        (target / name).write_text("mine")
    with pytest.raises(UserError, match="and is no converted model"):
        replace(target)
    assert sorted(tree(target)) == sorted(files)


@pytest.mark.parametrize("above", ["", "inner", "inner/deep"])
def test_the_working_directory_and_those_above_it_are_kept(tmp_path, monkeypatch, above):
    target = converted(tmp_path / "out")
    (target / "params" / above).mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(target / "params" / above if above else target)
    for name in (target, Path(os.path.relpath(target))):
        with pytest.raises(UserError, match="working directory, one above it or a mount point"):
            replace(name)
    assert (target / "manifest.json").read_text() == "old"


def test_an_empty_working_directory_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="working directory"):
        replace(Path("."), force=False)


def test_mount_points_and_links_are_kept(tmp_path):
    with pytest.raises(UserError, match="mount point"):
        require_free(Path("/proc"), force=True)
    target = converted(tmp_path / "out")
    (tmp_path / "link").symlink_to(target)
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    for name in ("link", "dangling"):
        with pytest.raises(UserError, match="is a link to"):
            replace(tmp_path / name)
    assert (tmp_path / "link" / "manifest.json").read_text() == "old" and not (tmp_path / "gone").exists()


def test_what_appears_during_the_work_is_kept(tmp_path):
    target = converted(tmp_path / "out")
    with pytest.raises(UserError, match=r"holds notes\.txt"), new_directory(target, True, 0):
        (target / "notes.txt").write_text("mine")
    assert (target / "notes.txt").exists() and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_too_little_room_is_said_before_anything_is_removed(tmp_path):
    target = converted(tmp_path / "out")
    before = tree(target)
    with pytest.raises(UserError, match="GB of room"), new_directory(target, True, 1 << 62):
        raise AssertionError("never entered")
    assert tree(target) == before


@pytest.fixture
def no_exchange(monkeypatch):
    monkeypatch.setattr(output, "_exchange", lambda one, other: False)


def test_two_steps_where_names_cannot_be_exchanged(tmp_path, no_exchange):
    replace(converted(tmp_path / "out"))
    assert tree(tmp_path) == {"out/config.json": b"new"}


def test_the_old_comes_back_if_the_second_step_fails(tmp_path, no_exchange, monkeypatch):
    target = converted(tmp_path / "out")
    before, rename = tree(tmp_path), Path.rename

    def fail(self, other):
        if ".part" in self.name:
            raise OSError(28, "No space left on device")
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(UserError, match="No space left"):
        replace(target)
    assert tree(tmp_path) == before


KILLED = """
import os, sys
from pathlib import Path
from unipixel_jax.convert import output
step, steps = int(sys.argv[2]), 0
def counted(function):
    def call(*args, **named):
        global steps
        if steps == step:
            os.kill(os.getpid(), 9)
        steps += 1
        return function(*args, **named)
    return call
for name in ("rename", "mkdir", "write_text"):
    setattr(Path, name, counted(getattr(Path, name)))
output.shutil.rmtree = counted(output.shutil.rmtree)
if sys.argv[3] == "two steps":
    output._exchange = lambda one, other: False
else:
    output._exchange = counted(output._exchange)
with output.new_directory(Path(sys.argv[1]), True, 0) as directory:
    for name in ("config.json", "manifest.json", "params"):
        (directory / name).mkdir() if name == "params" else (directory / name).write_text("new")
"""


@pytest.mark.parametrize("way", ["exchange", "two steps"])
def test_a_kill_at_any_step_loses_nothing_of_the_old(tmp_path, way):
    """After each kill the target is the old or the new directory, at the latest once the next run has begun, and that run leaves nothing beside it."""
    seen = []
    for step in range(12):
        target = converted(tmp_path / str(step) / "out")
        old = tree(target)
        process = subprocess.run([sys.executable, "-c", KILLED, str(target), str(step), way], check=False)
        assert process.returncode in (0, -9)
        if way == "exchange":
            assert target.is_dir()
        with pytest.raises(UserError, match="GB of room"), new_directory(target, True, 1 << 62):
            raise AssertionError("never entered")
        found = tree(target)
        assert found in (old, {"config.json": b"new", "manifest.json": b"new"})
        seen.append((process.returncode, found == old))
        assert [path.name for path in target.parent.iterdir()] == ["out"]
    assert (-9, True) in seen and (-9, False) in seen and (0, False) in seen


def test_the_users_new_directory_does_not_cost_the_old_one(tmp_path):
    """A process was killed between two steps, and the user made a folder of that name before the next run."""
    old = output._replaced(tmp_path / "out")
    converted(old)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds notes\.txt"):
        replace(tmp_path / "out")
    assert (old / "manifest.json").read_text() == "old"


def test_leftovers_of_dead_processes_are_removed_and_others_stay(tmp_path):
    target = tmp_path / "out"
    mine = aside_of(target)
    dead = mine.with_name(mine.name.replace(f"-{os.getpid()}-", "-999999999-"))
    for path in (mine, dead):
        path.mkdir()
    replace(target)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([mine.name, "out"])
