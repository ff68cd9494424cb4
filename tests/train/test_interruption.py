"""SIGTERM and Ctrl-C: the step is finished and saved, and the same call goes on; a second signal ends at once."""

import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from micro_run import micro_config, micro_start

from unipixel_jax.train import loop
from unipixel_jax.train.interruption import Interruption
from unipixel_jax.train.loop import train
from unipixel_jax.train.step import step_key


def weights(state):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state.trained)]


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_saves_and_the_same_call_goes_on(tmp_path, monkeypatch, capfd, number):
    start = micro_start(tmp_path / "start")
    config = micro_config(start, save_every=100)
    straight = train(config, tmp_path / "straight", start, jax.devices()[:1])

    def key(seed, step, batch):
        if step == 1:
            os.kill(os.getpid(), number)
            time.sleep(0.5)  # a thread takes note
        return step_key(seed, step, batch)

    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "step_key", key)
        stopped = train(config, tmp_path / "run", start, jax.devices()[:1])
    assert int(stopped.step) == 2 and signal.getsignal(number) is before
    told = capfd.readouterr().err
    assert f"{number.name}: saving after this step" in told
    assert f"{tmp_path / 'run'}: stopped by a signal; step 2 of 6 is saved. Start the same command again to go on" in told

    resumed = train(config, tmp_path / "run", start, jax.devices()[:1])
    assert int(resumed.step) == 6
    assert all(np.array_equal(a, b) for a, b in zip(weights(resumed), weights(straight), strict=True))
    assert f"{tmp_path / 'run'}: trained." in capfd.readouterr().err


def test_a_second_signal_ends_at_once():
    """Also where the main thread does not come back to Python, as while it compiles."""
    code = (
        "import ctypes, os, signal, threading\n"
        "from unipixel_jax.train.interruption import Interruption\n"
        "def send():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    while interruption.signal is None: pass\n"
        "    print(interruption.signal.name, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "with Interruption() as interruption:\n"
        "    threading.Timer(0.2, send).start()\n"
        "    while True: ctypes.CDLL(None).sleep(100)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (128 + signal.SIGINT, "SIGTERM\n")
    assert ended.stderr == "SIGTERM: saving after this step; a second signal ends at once, without saving\n"


def test_without_a_signal_nothing_is_noted():
    with Interruption() as interruption:
        assert interruption.signal is None
