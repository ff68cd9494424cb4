"""`unipixel-jax bench train`: its figures from a run's log, and the command on a micro model."""

import json
from pathlib import Path

import pytest
from micro_run import micro_start

from unipixel_jax.bench.training import summary
from unipixel_jax.cli import main

CONFIG = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
from micro_run import micro_config

def get_config():
    return micro_config(Path({start!r}))
"""


def line(rate, host_wait, save_wait):
    return {"samples_per_second": rate, "host_wait": host_wait, "save_wait": save_wait}


def test_figures_are_of_the_parts_after_the_first_save():
    warm_up = [line(1.0, 0.9, 0.0), line(2.0, 0.8, 0.0)]
    costs = summary([*warm_up, line(9.0, 0.01, 0.02), line(10.0, 0.03, 0.0), line(8.0, 0.02, 0.04), line(12.0, 0.04, 0.0)])
    assert costs.to_json() == pytest.approx(
        {"samples_per_second": 11.0, "samples_per_second_saving": 8.5, "host_wait": 0.025, "save_wait": 0.03, "overlapped": 8.5 / 11.0}
    )


@pytest.mark.slow
def test_the_command(tmp_path, capsys):
    config, figures = tmp_path / "micro.py", tmp_path / "figures.json"
    config.write_text(CONFIG.format(here=str(Path(__file__).parent), start=str(micro_start(tmp_path / "start"))))
    arguments = ["bench", "train", str(config), "--steps-per-part", "2", "--parts", "1", "--json", str(figures), "--mesh.preset", "single"]
    assert main(arguments) == 0
    found = json.loads(figures.read_text())
    assert found["samples_per_second"] > 0 and 0 <= found["host_wait"] < 1 and 0 < found["save_wait"] < 1
    assert "while a checkpoint is written" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures.json", "micro.py", "start"], "the run is gone"


@pytest.mark.slow
def test_a_step_is_timed(tmp_path, capsys):
    config, figures = tmp_path / "micro.py", tmp_path / "figures.json"
    config.write_text(CONFIG.format(here=str(Path(__file__).parent), start=str(micro_start(tmp_path / "start"))))
    sizes = ["--frames", "2", "--tokens", "512", "--objects", "1", "--repeats", "2"]
    assert main(["bench", "step", str(config), *sizes, "--json", str(figures), "--mesh.preset", "single", "--batch-size", "1"]) == 0
    found = json.loads(figures.read_text())
    assert len(found["gradients"]) == len(found["update"]) == 2 and min(found["gradients"]) > 0
    assert found["model_flops"] > 0 and found["mfu"] is None, "the peak of a CPU is not known"
    assert "gradients" in capsys.readouterr().out
