"""kill -9 at any moment: at most one interval is lost, never a complete checkpoint, and the run ends with the very bits of one that was left alone."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from kill_worker import EVERY

KILLS = 24


class Runs:
    """Training processes, one at a time."""

    def __init__(self, folder):
        environment = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": str(folder / "programs"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_NUMPY_DTYPE_PROMOTION": "standard",  # optax raises a float to a whole power
            "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        }
        worker = Path(__file__).with_name("kill_worker.py")
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(worker)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(self, directory, event=0, after=None):
        """Train in a directory, killed at an event or after so many seconds if given; returns the status and the lines that the run wrote."""
        log = Path(f"{directory}.log")
        before = len(log.read_text()) if log.exists() else 0
        self.process.stdin.write(f"{directory} {event}\n")
        self.process.stdin.flush()
        child = int(self.process.stdout.readline())
        if after is not None:
            time.sleep(after)
            with contextlib.suppress(ProcessLookupError):  # it may have ended by itself
                os.kill(child, signal.SIGKILL)
        return int(self.process.stdout.readline()), [line.split() for line in log.read_text()[before:].splitlines()]

    def stop(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    made = Runs(tmp_path_factory.mktemp("worker"))
    yield made
    made.stop()


@pytest.fixture(scope="module")
def undisturbed(runs, tmp_path_factory):
    """The digest of the last state of a run that nobody kills."""
    status, log = runs.run(tmp_path_factory.mktemp("undisturbed") / "run")
    assert status == 0 and log[0] == ["resumed", "0"]
    return dict(log)["done"]


def complete(directory):
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit()) if directory.exists() else []


@pytest.mark.parametrize("by", ["event", "time"])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(runs, undisturbed, tmp_path, by):
    generator = np.random.default_rng(5)
    kills, ended, places = 0, 0, set()
    directory = tmp_path / "run0"
    while kills < KILLS // 2 or not ended or complete(directory):
        last = max(complete(directory), default=0)
        if kills >= KILLS // 2:
            status, log = runs.run(directory)
        elif by == "event":
            status, log = runs.run(directory, event=int(generator.integers(1, 110)))
        else:
            status, log = runs.run(directory, after=float(generator.uniform(0.02, 0.6)))
        resumed = [int(line[1]) for line in log if line[0] == "resumed"]
        assert resumed in ([last], []), "the newest complete checkpoint is the one that is read"
        begun = [int(line[1]) for line in log if line[0] == "saving"]
        assert max(complete(directory), default=0) >= max([last, *(step - EVERY for step in begun)]), "at most the save under way is lost"
        if status == 0:
            assert dict(line for line in log if len(line) == 2)["done"] == undisturbed
            assert [path.name for path in sorted(directory.iterdir())] == [str(step) for step in complete(directory)], "nothing half written is left"
            ended += 1
            directory = tmp_path / f"run{ended}"
        else:
            assert status == signal.SIGKILL
            kills += 1
            places |= {line[2] for line in log if line[0] == "dies"}
    assert kills >= KILLS // 2 and ended >= 1
    assert by == "time" or len(places) >= 3, "killed while opening, renaming, deleting"
