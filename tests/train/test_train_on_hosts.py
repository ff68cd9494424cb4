"""`unipixel-jax train` in two processes of four devices each, which are killed, interrupted, and continued by two processes or one."""

import json
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
from micro_run import micro_start
from processes import Processes, free_port

from unipixel_jax.core.distributed import LOST

STEPS, EVERY, LOST_SECONDS = 16, 4, 30
CONFIG = """
import sys
import time
from pathlib import Path
sys.path.insert(0, {here!r})
from micro_run import micro_config

def get_config():
    return micro_config(Path({start!r}), steps={steps}, log_every=1, save_every={every})
"""
SLOW = """
if sys.argv[-1] == "1":  # the process's number
    from unipixel_jax.train import loop
    real = loop.to_devices
    loop.to_devices = lambda *arguments: (time.sleep(2), real(*arguments))[1]
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A configuration file."""
    folder = tmp_path_factory.mktemp("config")
    start = micro_start(folder / "start")
    file = folder / "micro.py"
    file.write_text(CONFIG.format(here=str(Path(__file__).parent), start=str(start), steps=STEPS, every=EVERY))
    return file


def training(folder, config, count=2, lost=600):
    """The same command in several processes, which find each other; all train in ``folder``/run."""
    port = free_port()
    limits = ["--hosts.lost-seconds", str(lost), "--hosts.start-seconds", "600"]
    command = ["-m", "unipixel_jax.cli", "train", str(config), "--run-dir", str(folder / "run"), *limits]
    hosts = [
        [] if count == 1 else ["--hosts.coordinator-address", f"127.0.0.1:{port}", "--hosts.num-processes", str(count), "--hosts.process-id", str(number)]
        for number in range(count)
    ]
    flags = f"--xla_force_host_platform_device_count={8 // count} --xla_backend_optimization_level=0"
    tries = len(list(folder.glob("try*")))
    return Processes(folder / f"try{tries}", [[*command, *own] for own in hosts], XLA_FLAGS=flags, UNIPIXEL_JAX_CACHE=os.environ["JAX_COMPILATION_CACHE_DIR"])


def losses(folder):
    """The loss of every step."""
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    return np.array([line["loss"] for line in lines])


def gone_on(folder, config, count=2):
    """All losses of a run that ended early, after the same command was started again."""
    with training(folder, config, count) as processes:
        assert [one.status for one in processes.ended()] == [0] * count
    return losses(folder)


def newest(folder):
    return max(int(path.name) for path in (folder / "run" / "checkpoints").iterdir() if path.name.isdigit())


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory):
    """The losses of a run that nobody disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with training(folder, config) as processes:
        first, second = processes.ended()
    assert (first.status, second.status) == (0, 0), first.err + second.err
    assert "trained. Export it with" in first.err and "loss" not in second.err, "only the first process shows something"
    return losses(folder)


@pytest.mark.slow
def test_killed_and_started_again(config, undisturbed, tmp_path):
    with training(tmp_path, config, lost=LOST_SECONDS) as processes:
        processes.wait_for(0, f"step {2 * EVERY + 1} ")
        processes.started[1].kill()
        survivor, dead = processes.ended()
    assert dead.status == -signal.SIGKILL
    assert survivor.status == LOST
    assert re.fullmatch(rf"error: waiting for '.*': no word from process 1 \(.*\) for {LOST_SECONDS} s; look there for the reason", survivor.errors[0])
    assert newest(tmp_path) >= EVERY

    np.testing.assert_array_equal(gone_on(tmp_path, config), undisturbed)


@pytest.mark.slow
def test_told_to_end_and_started_again(config, undisturbed, tmp_path):
    with training(tmp_path, config) as processes:
        processes.wait_for(0, "step 3 ")
        processes.started[1].send_signal(signal.SIGTERM)
        first, told = processes.ended()
    assert (first.status, told.status) == (0, 0), first.err + told.err
    (step,) = map(int, re.findall(r"stopped by a signal; step (\d+) of 16 is saved\. Start the same command again to go on", first.err))
    assert 3 <= step < STEPS and newest(tmp_path) == step
    assert told.err.count("SIGTERM: saving after this step") == 1

    np.testing.assert_array_equal(gone_on(tmp_path, config), undisturbed)


@pytest.mark.slow
def test_goes_on_in_one_process(config, undisturbed, tmp_path):
    with training(tmp_path, config) as processes:
        processes.wait_for(0, "step 3 ")
        processes.started[0].send_signal(signal.SIGTERM)
        assert [one.status for one in processes.ended()] == [0, 0]
    np.testing.assert_allclose(gone_on(tmp_path, config, count=1), undisturbed, rtol=1e-4)


@pytest.mark.slow
def test_the_slowest_process_is_named(config, tmp_path):
    slow = tmp_path / "slow.py"
    slow.write_text(config.read_text() + SLOW)
    with training(tmp_path, slow) as processes:
        first, second = processes.ended()
    assert (first.status, second.status) == (0, 0), first.err + second.err
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-3:]]
    assert all(line["slowest_process"] == 1 and line["process_wait"] > 0.3 for line in lines)
    assert re.search(r"process 1 \(.*\) is the slowest: another process waited for it for \d+% of the time", first.err)
