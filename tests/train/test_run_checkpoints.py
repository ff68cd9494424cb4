"""Checkpoints of training: which are kept, which are refused, and reading them on other meshes."""

import logging
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_runs import RUN_INFO, ToyState, abstract, divided, flip, make_state, mesh_sharding, names, restored, same_bits, saved

from unipixel_jax.core.fingerprint import fingerprints
from unipixel_jax.core.stored import weights_digest
from unipixel_jax.errors import UserError
from unipixel_jax.train.checkpoints.manager import Best, Checkpoints
from unipixel_jax.train.checkpoints.manifest import RunInfo
from unipixel_jax.train.checkpoints.orbax_noise import silence
from unipixel_jax.train.checkpoints.reader import named_leaves, read_arrays
from unipixel_jax.train.export import export
from unipixel_jax.train.loaders import resume


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


def test_names_that_are_no_steps_are_left_alone(tmp_path):
    saved(tmp_path, 10)
    (tmp_path / "\u00b2").mkdir()
    assert read_arrays(tmp_path, None, "step")[0].step == 10


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
