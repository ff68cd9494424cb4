"""The script that checks and times an accelerator: its commands are ones that exist, and with small sizes they run on a CPU."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import benchmark_accelerator as script
from unipixel_jax.cli import parse


@pytest.mark.parametrize(("chip", "small"), [("h100", False), ("v5e", False), ("cpu", True)])
def test_the_commands_exist(chip, small):
    for part in script.parts(chip, small):
        if part.command[: len(script.COMMAND)] == script.COMMAND:
            args = argparse.Namespace(verbose=False)
            assert parse(part.command[3:], args) == 0, part.name
            assert str(args.json) == "JSON"
        else:
            assert any((script.ROOT / word).is_file() for word in part.command[1:]), part.name


def test_a_part_without_time_is_told_apart_from_one_that_fails():
    sleeping = script.Part("sleep", [sys.executable, "-c", "import time; time.sleep(60)"], 1.0)
    assert script.run(sleeping, 0.5)["ended"] == "stopped after 0 s"
    failing = script.run(script.Part("fail", [sys.executable, "-c", "print('no device'); raise SystemExit(3)"], 1.0), 60)
    assert (failing["status"], failing["said"]) == (3, ["no device"])


@pytest.mark.slow
def test_all_parts_run_on_a_cpu(tmp_path):
    file = tmp_path / "cpu.json"
    command = [sys.executable, "scripts/benchmark_accelerator.py", "--small", "--minutes", "60", "--json", str(file)]
    done = subprocess.run(command, cwd=Path(script.__file__).parent.parent, capture_output=True, text=True)
    report = json.loads(file.read_text())
    assert done.returncode == 0, report
    assert [name for name, result in report["parts"].items() if "figures" not in result] == ["attention, battery"]
    assert all(result["status"] == 0 for result in report["parts"].values())
