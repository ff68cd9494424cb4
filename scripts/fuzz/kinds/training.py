"""Cases of training runs, which are exported, resumed, or whose step with numbers that were not finite is reproduced."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from random import Random

from ..case import Case, Kind
from ..odd_files import change_folder, copy
from ..processes import call
from . import ROOT

STEPS, EVERY = 6, 2
CONFIG = """import sys
sys.path += {path!r}
from dataclasses import replace
from pathlib import Path
from micro_run import micro_config

def get_config():
    return replace(micro_config(Path({start!r})), steps={steps}, save_every={every}, keep=3, batch_size=4, run_dir="run")
"""
"""The configuration file of a run on a micro model."""


def write_config(file: Path, start: Path) -> None:
    """Write the configuration file of a run that starts from a converted directory."""
    file.write_text(CONFIG.format(path=[str(ROOT / "tests" / "train")], start=str(start), steps=STEPS, every=EVERY))


def prepare(folder: Path) -> None:
    """Write a run that was ended before its last checkpoint, and one that stopped since its loss was not finite."""
    from micro_run import micro_start

    write_config(folder / "config.py", micro_start(folder / "start"))
    os.chdir(folder)
    assert call(["train", "config.py"]) == 0
    shutil.rmtree(folder / "run" / "checkpoints" / str(STEPS))
    assert call(["train", "config.py", "--optim.learning-rate", "1e30", "--run-dir", "stopped"]) == 1


def make(seeds: Path, folder: Path, rng: Random) -> Case:
    """Change files of a run."""
    work = rng.random()
    source = "stopped" if work < 0.1 else "run"
    copy(seeds / source, folder / "run")
    patterns = ["manifest/metadata", "*METADATA*", "*", "d/*"] if source == "run" else ["not_finite_step_*"]
    note = change_folder(folder / "run", rng, patterns)
    if source == "stopped":
        saved = sorted(p.name for p in (folder / "run").iterdir() if p.name.startswith("not_finite_step_"))
        return Case(["train", "reproduce", "run", f"run/{saved[-1] if saved else 'not_finite_step_1'}"], f"stopped: {note}")
    if work < 0.15:
        return Case(["train", str(seeds / "config.py")], f"going on: {note}", ("run",), ("run",), talks=True)
    form = rng.choice(("jax", "jax", "torch", "adapter"))
    step = rng.choice(([], [], ["--step", "2"]))
    return Case(["train", "export", "run", "out", "--format", form, *step], note, ("out",))


KIND = Kind("training", 400, prepare, make)
