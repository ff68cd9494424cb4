"""The metrics of a run where the disk or Weights & Biases fails, and where the run is started again."""

import contextlib
import io
import json
import struct
import sys
import time
from dataclasses import replace
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from unipixel_jax.config import preset
from unipixel_jax.core import distributed
from unipixel_jax.errors import UserError
from unipixel_jax.losses.mask import MaskLosses
from unipixel_jax.train.flops import Flops, constant_flops, object_flops
from unipixel_jax.train.meter import Meter
from unipixel_jax.train.metrics import Watch
from unipixel_jax.train.objective import LossParts
from unipixel_jax.train.step import StepMetrics

VALUES = {f"number_{i}": float(i) for i in range(40)}


def batch():
    """Return a batch of one sample with five tokens, with the fields that a meter reads."""
    return SimpleNamespace(samples=("one",), inputs=SimpleNamespace(segments=np.array([[1, 1, 1, 1, 1, 0]])))


def losses(total):
    zero = np.float32(0)
    return LossParts(np.float32(total), np.float32(total), zero, MaskLosses(zero, zero, zero, zero), zero, zero, zero)


def test_what_the_processes_wait_for(monkeypatch):
    """The slowest of three processes is the one that waits least for the others; all of them wait for the data of the slowest reader."""
    others = [[1, 5, 1e9, 0, 0.5, 4.0], [1, 5, 1e9, 0, 3.0, 0.25]]
    monkeypatch.setattr(distributed, "gather", lambda name, own: [own, *map(json.dumps, others)])
    meter = Meter(wait=1.0, ahead=3.0, saving=2.0, since=time.perf_counter() - 10)
    meter.count(batch(), losses(2.0), 1e9)
    meter.updates.append(StepMetrics(np.float32(1), {}, np.bool_(True)))
    values = meter.values(1e-4, 1, 0)
    seconds = 4.0 / values["process_wait"]
    assert 10 <= seconds < 60
    assert {name: round(values[name] * seconds, 6) for name in ("host_wait", "save_wait", "samples_per_second")} == {
        "host_wait": 3.0, "save_wait": 2.0, "samples_per_second": 3.0,
    }  # fmt: skip
    assert values["slowest_process"] == 2


def test_a_single_process_waits_for_no_other():
    meter = Meter()
    with meter.counting("saving"):
        time.sleep(0.01)
    meter.count(batch(), losses(2.0), 1e9)
    meter.updates.append(StepMetrics(np.float32(1), {}, np.bool_(True)))
    values = meter.values(1e-4, 1, 0)
    assert 0 < values["save_wait"] <= 1 and "slowest_process" not in values


def steps(run):
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().split("\n") if line]


def events(run):
    """Return the events that TensorBoard reads, file by file."""
    found = []
    for path in sorted((run / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:
            length = struct.unpack("Q", data[:8])[0]
            found.append(event_pb2.Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def test_a_full_disk_leaves_numbers_out_and_hides_no_error(tmp_path, full_disk, caplog):
    refused = pytest.raises(UserError, match="step 99 could not be saved")
    with refused, contextlib.ExitStack() as until_closed, Watch(tmp_path, {}, 100, 0) as watch:
        watch.write(1, VALUES)
        until_closed.enter_context(full_disk())
        for step in range(2, 100):
            watch.write(step, VALUES)
        raise UserError("step 99 could not be saved")
    told = sorted(record.getMessage() for record in caplog.records)
    assert told == [
        f"{tmp_path / 'metrics.jsonl'} cannot be written (a file may not become so large): metrics are left out as long as that is so",
        "TensorBoard left out: a file may not become so large",
    ]
    assert steps(tmp_path) == list(range(1, len(steps(tmp_path)) + 1)), "a line was cut off"


def test_numbers_go_on_when_there_is_room_again(tmp_path, full_disk):
    with Watch(tmp_path, {}, 200, 0) as watch:
        with full_disk():
            for step in range(1, 100):
                watch.write(step, VALUES)
        watch.write(100, VALUES)
    *written, last = steps(tmp_path)
    assert last == 100 and len(written) < 99


def test_steps_that_are_done_again_are_dropped(tmp_path):
    for first in (0, 2):
        with Watch(tmp_path, {}, 4, first) as watch:
            for step in range(first + 1, 5):
                watch.write(step, {"loss": float(step)})
    assert steps(tmp_path) == [1, 2, 3, 4]
    shown = []
    for event in events(tmp_path):
        if event.session_log.status == event_pb2.SessionLog.START:  # as TensorBoard does
            shown = [step for step in shown if step < event.step]
        shown += [event.step] if event.summary.value else []
    assert shown == [1, 2, 3, 4]


@pytest.fixture
def wandb(monkeypatch):
    """A module in the place of Weights & Biases, which notes what is asked of it."""
    module = ModuleType("wandb")
    module.__spec__ = ModuleSpec("wandb", None)
    module.asked, module.logged, module.finished = [], [], 0
    module.init = lambda **settings: (module.asked.append((settings, sys.stdin.isatty())), module)[1]
    module.log = lambda values, step: module.logged.append(step)
    module.finish = lambda: setattr(module, "finished", module.finished + 1)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_a_run_that_is_started_again_is_the_same_at_wandb(tmp_path, wandb):
    for first in (0, 2):
        with Watch(tmp_path, {"seed": 0}, 4, first) as watch:
            watch.write(first + 1, {"loss": 1.0})
    first, second = (settings for settings, _ in wandb.asked)
    assert first == second and first["id"] and first["resume"] == "allow" and first["config"] == {"seed": 0}
    assert wandb.logged == [1, 3] and wandb.finished == 2
    with Watch(tmp_path / "other", {}, 4, 0):
        pass
    assert wandb.asked[-1][0]["id"] != first["id"]


@pytest.mark.parametrize("when", ["init", "log", "finish"])
def test_training_goes_on_without_wandb(tmp_path, wandb, monkeypatch, caplog, when):
    def fail(*_, **__):
        raise RuntimeError("No API key configured.")

    setattr(wandb, when, fail)
    with Watch(tmp_path, {}, 4, 0) as watch:
        watch.write(1, {"loss": 1.0})
        watch.write(2, {"loss": 1.0})
    assert [record.getMessage() for record in caplog.records] == ["Weights & Biases left out: No API key configured."]
    assert steps(tmp_path) == [1, 2]


def test_wandb_cannot_ask_for_a_key(tmp_path, wandb, monkeypatch):
    keyboard = io.StringIO()
    keyboard.isatty = lambda: True
    monkeypatch.setattr(sys, "stdin", keyboard)
    with Watch(tmp_path, {}, 4, 0):
        assert sys.stdin is keyboard
    assert [asked for _, asked in wandb.asked] == [False]


def test_damaged_lines_of_a_log_are_dropped(tmp_path):
    whole = ['{"step": 1, "note": "a\u2028b"}', '{"step": 2}']
    damaged = ["[" * 100_000, "[1]", '{"step": "2"}', '{"step": 1e999}', '{"step": null}', '{"step": true}', '"step"', "", '{"step": 9}', "\udcff"]
    (tmp_path / "metrics.jsonl").write_bytes("\n".join([whole[0], *damaged, whole[1], '{"step": 2']).encode("utf-8", "surrogateescape"))
    with Watch(tmp_path, {}, 4, 2) as watch:
        watch.write(3, {})
    assert steps(tmp_path) == [1, 2, 3]


def test_constant_scores_have_no_backward_pass():
    """They count forward only; of the products of weights and values one of two gradients counts."""
    sam = replace(preset("tiny").sam2, memory_attention_layers=1)
    plain = Flops(language=5.0, sam=100.0).training(("all",))
    assert (plain.language, plain.sam) == (15.0, 300.0)
    assert Flops(language=5.0, sam=100.0, constant=30.0).training(("all",)).sam == 240.0
    cells, d, m = sam.grid**2, sam.d_model, sam.mem_dim
    products = {"own": cells * d, "own projection": d * d, "scores": 7 * cells * d, "values": 7 * cells * m, "keys": 7 * m * d}
    still = 2 * products["own projection"] + 1.5 * products["own"] + products["own projection"] + products["keys"] + products["scores"] + products["values"] / 2
    assert constant_flops(sam) == 2 * cells * still
    assert constant_flops(sam) < object_flops(sam, 1)
