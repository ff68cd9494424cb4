"""Checkpoints of training: what is kept, what is refused, what is damaged, and other meshes."""

import json
import logging
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from unipixel_jax.core.fingerprint import fingerprints
from unipixel_jax.errors import UserError
from unipixel_jax.train.checkpoints.manager import Best, Checkpoints
from unipixel_jax.train.checkpoints.manifest import RunInfo, _digest, weights_digest
from unipixel_jax.train.checkpoints.orbax_noise import silence
from unipixel_jax.train.checkpoints.reader import named_leaves, read_arrays
from unipixel_jax.train.export import export
from unipixel_jax.train.loaders import resume

RUN_INFO = RunInfo({"lr": 1e-3}, {"text": {"width": 64, "sections": (2, 3)}, "lora": {"rank": 8}, "trained": ["seg"]}, {"start": "base"})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ToyState:
    step: jax.Array
    trained: dict
    opt_state: optax.OptState


def make_state(step=0, rows=16):
    generator = np.random.default_rng(step)
    draw = lambda *shape: jnp.asarray(generator.standard_normal(shape, np.float32))  # noqa: E731
    trained = {"text": {"blocks": {"q": draw(3, rows, 8)}}, "sam2": {"stages": {0: {"w": draw(rows)}, 1: {"w": draw(rows, 4).astype(jnp.bfloat16)}}}}
    moments = optax.adamw(1e-3).init(trained)
    return ToyState(jnp.int32(step), trained, jax.tree.map(lambda a: a + jnp.ones((), a.dtype), moments))


def abstract(state, sharding=None):
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding or a.sharding), state)


def same_bits(a, b):
    a, b = named_leaves(a), named_leaves(b)
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and np.asarray(a[n]).tobytes() == np.asarray(b[n]).tobytes() for n in a)


def saved(directory, *steps, keep=5, **kwargs):
    """A closed directory with a checkpoint of each step."""
    with Checkpoints(directory, RUN_INFO, keep, **kwargs) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step), {"position": step})


def restored(directory, target=None, run_info=RUN_INFO):
    with Checkpoints(directory, run_info, 5) as checkpoints:
        return checkpoints.restore(target or abstract(make_state()))


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_a_state_comes_back_bit_for_bit_with_its_data(tmp_path):
    state = make_state(7)
    with Checkpoints(tmp_path, RUN_INFO, 2) as checkpoints:
        assert checkpoints.restore(abstract(state)) is None
        checkpoints.save(7, state, {"epoch": 1, "position": [3, 4]})
        checkpoints.wait()
        assert checkpoints.steps == [7]
        found = checkpoints.restore(abstract(state))
    assert (found.step, found.data) == (7, {"epoch": 1, "position": [3, 4]})
    assert same_bits(found.state, state) and isinstance(found.state, ToyState)
    assert jax.tree.structure(found.state) == jax.tree.structure(state)


def test_donated_arrays_do_not_reach_the_file(tmp_path):
    """`save` returns before the file is written, and the next step may overwrite the arrays."""
    state = jax.device_put(make_state(1))
    expected = jax.tree.map(lambda a: np.array(a), state)
    with Checkpoints(tmp_path, RUN_INFO, 2) as checkpoints:
        checkpoints.save(1, state, None)
        jax.jit(lambda s: jax.tree.map(lambda a: a * jnp.zeros((), a.dtype), s), donate_argnums=0)(state)
        checkpoints.wait()
        assert same_bits(checkpoints.restore(abstract(make_state())).state, expected)


def test_only_the_latest_are_kept(tmp_path):
    saved(tmp_path, 10, 20, 30, 40, keep=2)
    assert names(tmp_path) == ["30", "40"]
    assert restored(tmp_path).step == 40


@pytest.mark.parametrize("larger, best", [(True, 20), (False, 10)])
def test_the_best_is_kept_too(tmp_path, larger, best):
    with Checkpoints(tmp_path, RUN_INFO, 1, Best("iou", larger)) as checkpoints:
        for step, metrics in [(10, {"iou": 0.1}), (20, {"iou": 0.9}), (30, {"iou": float("nan")}), (40, None), (50, {"loss": 2.0}), (60, {"iou": 0.5})]:
            checkpoints.save(step, make_state(step), None, metrics)
    assert names(tmp_path) == [str(best), "60"]
    with Checkpoints(tmp_path, RUN_INFO, 1, Best("iou", larger)) as checkpoints:
        checkpoints.save(70, make_state(70), None, {"iou": 0.5})
    assert names(tmp_path) == [str(best), "70"]


def test_a_step_is_saved_once(tmp_path):
    with Checkpoints(tmp_path, RUN_INFO, 2) as checkpoints:
        checkpoints.save(5, make_state(5), "first")
        checkpoints.save(5, make_state(6), "second")
        assert checkpoints.restore(abstract(make_state())).data == "first"


def mesh_sharding(count, *spec):
    devices = np.array(jax.devices()[:count]).reshape(-1, 2 if count > 1 else 1)
    return NamedSharding(jax.sharding.Mesh(devices, ("fsdp", "tp")), PartitionSpec(*spec))


def divided(state, count):
    """Where each leaf goes on a mesh of so many devices: rows over one axis or both."""
    specs = {0: (), 1: ("fsdp",), 2: ("fsdp", "tp"), 3: (None, "fsdp", "tp")}
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=mesh_sharding(count, *specs[a.ndim])), state)


def test_other_meshes_read_the_same_bits(tmp_path):
    state = make_state(3)
    on_eight = jax.tree.map(lambda a, t: jax.device_put(a, t.sharding), state, divided(state, 8))
    assert fingerprints(named_leaves(on_eight)) == fingerprints(named_leaves(state))
    with Checkpoints(tmp_path / "8", RUN_INFO, 1) as checkpoints:
        checkpoints.save(3, on_eight, None)
    previous = tmp_path / "8"
    for count in (4, 1, 8):
        target = divided(state, count)
        found = restored(previous, target).state
        assert same_bits(found, state)
        assert all(a.sharding == t.sharding for a, t in zip(jax.tree.leaves(found), jax.tree.leaves(target), strict=True))
        previous = tmp_path / str(count + 100)
        with Checkpoints(previous, RUN_INFO, 1) as checkpoints:
            checkpoints.save(3, found, None)


def test_half_written_and_half_deleted_steps_are_ignored_and_cleaned(tmp_path):
    saved(tmp_path, 10)
    shutil.copytree(tmp_path / "10", tmp_path / "20.orbax-checkpoint-tmp")
    shutil.copytree(tmp_path / "10" / "state", tmp_path / ".deleted" / "5" / "state")
    with Checkpoints(tmp_path, RUN_INFO, 2) as checkpoints:
        assert checkpoints.restore(abstract(make_state())).step == 10
        checkpoints.save(20, make_state(20), None)
    assert names(tmp_path) == ["10", "20"]
    assert restored(tmp_path).step == 20


def each_file(step, change):
    """Change every file that holds numbers: Orbax leaves some behind that nothing refers to."""
    for path in [*(step / "state").rglob("d/*")]:
        change(path)


def truncate(step):
    each_file(step, lambda path: path.write_bytes(path.read_bytes()[:-20]))


def flip(step):
    def change(path):
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 1
        path.write_bytes(raw)

    each_file(step, change)


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


def test_another_run_is_refused_and_the_fields_are_named(tmp_path):
    saved(tmp_path, 10)
    other = RunInfo({}, {"text": {"width": 128, "sections": (2, 3)}, "lora": None, "trained": ["seg"]}, {})
    with pytest.raises(UserError, match=r"another run: text\.width is 128 here, 64 there; lora is null here, absent there; lora\.rank is absent here, 8 there"):
        restored(tmp_path, run_info=other)
    assert restored(tmp_path, run_info=RunInfo({"lr": 2}, RUN_INFO.identity, {"start": "moved"})).step == 10


def test_another_state_is_refused_and_the_arrays_are_named(tmp_path):
    saved(tmp_path, 10)
    with pytest.raises(UserError, match=r"trained/sam2/stages/0/w is float32 \(16,\), expected float32 \(32,\)"):
        restored(tmp_path, abstract(make_state(rows=32)))
    state = make_state()
    more = ToyState(state.step, {**state.trained, "new": jnp.zeros(3)}, state.opt_state)
    with pytest.raises(UserError, match="trained/new is not in it"):
        restored(tmp_path, abstract(more))
    with pytest.raises(UserError, match=r"holds .*trained/text/blocks/q, which this run does not have"):
        restored(tmp_path, abstract(ToyState(state.step, {"sam2": state.trained["sam2"]}, state.opt_state)))
    assert names(tmp_path) == ["10"]


def test_a_later_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("unipixel_jax.train.checkpoints.manifest.FORMAT", 4)
    saved(tmp_path, 10)
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"format 4, this version reads 3"):
        restored(tmp_path)


def test_a_disk_that_refuses_gives_one_line_and_keeps_what_was_complete(tmp_path, full_disk, caplog):
    large = make_state(20, rows=2000)
    saved(tmp_path, 10, keep=1)
    with Checkpoints(tmp_path, RUN_INFO, 1) as checkpoints:
        with full_disk():
            checkpoints.save(20, large, None)
            with pytest.raises(UserError, match=r"step 20 could not be saved \(a file may not become so large\); the newest complete .* step 10") as error:
                checkpoints.wait()
            assert "\n" not in str(error.value) and not caplog.records
            assert names(tmp_path) == ["10"] and checkpoints.steps == [10]
            checkpoints.save(30, large, None)
            with pytest.raises(UserError, match="step 30 could not be saved"):
                checkpoints.save(40, large, None)
        checkpoints.save(50, large, "data")
    assert names(tmp_path) == ["50"]
    assert restored(tmp_path, abstract(large)).data == "data"


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made"):
        Checkpoints(tmp_path / "file" / "run", RUN_INFO, 1)
    with pytest.raises(UserError, match="keep is 0, expected at least 1"):
        Checkpoints(tmp_path / "run", RUN_INFO, 0)


def test_a_second_run_in_the_same_directory_is_refused(tmp_path):
    code = f"import fcntl; f = open({str(tmp_path / '.run.lock')!r}, 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print('held', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="run is in use by another training process"):
            Checkpoints(tmp_path / "run", RUN_INFO, 1)
        other.kill()
        other.wait()
        saved(tmp_path / "run", 10)
    assert restored(tmp_path / "run").step == 10


def test_a_part_is_read_without_touching_the_directory(tmp_path):
    saved(tmp_path, 10, 20)
    (tmp_path / "30.orbax-checkpoint-tmp").mkdir()
    before = names(tmp_path)
    manifest, arrays = read_arrays(tmp_path, None, "trained/")
    assert manifest.step == 20 and manifest.run_info.source == {"start": "base"}
    expected = {name: leaf for name, leaf in named_leaves(make_state(20)).items() if name.startswith("trained/")}
    assert same_bits(arrays, expected) and all(isinstance(array, np.ndarray) for array in arrays.values())
    assert read_arrays(tmp_path, 10, "step")[1]["step"] == 10
    assert names(tmp_path) == before
    with pytest.raises(UserError, match="has no checkpoint of step 15, only of 10, 20"):
        read_arrays(tmp_path, 15, "trained/")
    flip(tmp_path / "20")
    with pytest.raises(UserError, match=r"20 is damaged .*; others are there: 10"):
        read_arrays(tmp_path, None, "trained/")
    assert names(tmp_path) == before
    with pytest.raises(UserError, match="holds no checkpoint"):
        read_arrays(tmp_path / "nowhere", None, "trained/")


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32, jnp.uint8, jnp.bool_])
def test_every_changed_bit_changes_the_fingerprint(rng, dtype):
    raw = rng.integers(0, 2, (5, 3)) if dtype == jnp.bool_ else rng.integers(0, 100, (5, 3))
    array = np.asarray(raw, dtype)
    mark = fingerprints({"a": jnp.asarray(array)})["a"]
    for index in range(array.nbytes):
        for bit in range(1 if dtype == jnp.bool_ else 8):
            other = bytearray(array.tobytes())
            other[index] ^= 1 << bit
            changed = np.frombuffer(bytes(other), dtype).reshape(5, 3)
            assert fingerprints({"a": jnp.asarray(changed)})["a"] != mark
    assert fingerprints({"a": jnp.asarray(array[::-1])})["a"] != mark


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.uint8, jnp.bool_])
@pytest.mark.parametrize("shape", [(), (0, 4), (8,), (2, 16, 8)])
def test_host_and_divided_devices_find_the_same_fingerprint(rng, monkeypatch, dtype, shape):
    array = jnp.asarray(rng.standard_normal(shape) * 50 > 0 if dtype == jnp.bool_ else rng.standard_normal(shape) * 50, dtype)
    on_host = fingerprints({"a": array})
    monkeypatch.setattr("unipixel_jax.core.fingerprint.SMALL", -1)
    spec = () if not shape or 0 in shape else (None,) * (len(shape) - 1) + ("fsdp",)
    assert fingerprints({"a": array}) == fingerprints({"a": jax.device_put(array, mesh_sharding(8, *spec))}) == on_host


@pytest.mark.parametrize("shape", [[1 << 40], [1 << 20, 1 << 20], [600_000_000]])
def test_sizes_that_only_a_manifest_gives_are_compared_with_the_files(tmp_path, shape):
    saved(tmp_path, 10)
    forge(tmp_path / "10", entry(shape=shape))
    with pytest.raises(UserError, match=r"10 is damaged \(its manifest names arrays of [0-9,]+ bytes, its files have"):
        read_arrays(tmp_path, None, "trained/")


def test_names_that_are_no_steps_are_left_alone(tmp_path):
    saved(tmp_path, 10)
    (tmp_path / "\u00b2").mkdir()
    assert read_arrays(tmp_path, None, "step")[0].step == 10


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


def test_a_checkpoint_that_does_not_name_its_origin_is_not_exported(tmp_path):
    saved(tmp_path / "checkpoints", 10)
    with pytest.raises(UserError, match="does not say what it was trained from"):
        export(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", '{"tensors": [1]}', '{"tensors": {"a": 1}}', '{"tensors": {"a": {}}}'])
def test_a_start_without_checksums_is_one_line(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"manifest\.json .*expected a directory made by: unipixel-jax convert to-jax") as error:
        weights_digest(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("data", [None, [], {}, {"mixture": 1}, {"mixture": {}, "step": None}])
def test_data_that_stood_nowhere_is_one_line(tmp_path, data):
    class Loader:
        def restore(self, state):
            state["mixture"].items()
            int(state["step"])

    with pytest.raises(UserError, match="does not say where the data stood"):
        resume(Loader(), data, tmp_path)


def test_reads_that_were_given_up_say_nothing(caplog):
    silence()
    log = logging.getLogger("asyncio")
    log.error("Task exception was never retrieved\nfuture: <Task coro=<async_deserialize() done, defined at orbax/checkpoint/_src/serialization.py:394>>")
    log.error("Future exception was never retrieved\nfuture: <Future exception=ValueError('[tensorstore_spec={}]')>")
    log.error("Task exception was never retrieved\nfuture: <Task of somebody else>")
    assert [record.getMessage().splitlines()[-1] for record in caplog.records] == ["future: <Task of somebody else>"]
