"""The rows of docs/plan.md: each is a plan that the command accepts, and compiling it writes the row."""

import importlib.util
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from unipixel_jax.core.mesh import mesh_sizes
from unipixel_jax.plan.topology import _split
from unipixel_jax.train.config import load_config

ROOT = Path(__file__).parents[2]


def load_script():
    spec = importlib.util.spec_from_file_location("write_plan_table", ROOT / "scripts" / "write_plan_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPT = load_script()


@pytest.mark.parametrize("name", SCRIPT.ROWS)
def test_a_row_divides_among_its_chips(name):
    config, _, topology, *rest = SCRIPT.ROWS[name]
    fields = rest[next(i for i, word in enumerate(rest) if word in ("--batch-size", "--mesh.context")) :]
    run = load_config(ROOT / config, fields)
    _, chip, shape = _split(topology)
    chips = math.prod(map(int, shape.split("x")))
    sizes = mesh_sizes(run.mesh, [SimpleNamespace(platform="tpu")] * chips)
    assert run.batch_size % (sizes["data"] * sizes["fsdp"]) == 0
    assert name.startswith(f"{run.start.size}_") and (f"{chip}-" in name)
    # docs/plan.md tells the long video by its mesh
    assert (run.mesh.context >= 4) == ("--frames" in rest) == ("_long_" in name)
    # the row that is kept was compiled so; for GPUs there is one effort
    (kept,) = SCRIPT.read(name)
    assert (run.remat, run.batch_size) == (kept["remat"], kept["batch_size"])
    assert chip == "h100" or ("--full-effort" in rest) == kept["full_effort"]


def test_rows_that_are_not_compiled_yet_are_left_out(tmp_path, monkeypatch):
    shutil.copy(ROOT / "docs" / "plans" / "3b_v5e-8.json", tmp_path)
    monkeypatch.setattr(SCRIPT, "FOLDER", tmp_path)
    monkeypatch.setattr(SCRIPT, "plot", lambda reports, path: None)
    monkeypatch.setattr(SCRIPT.sys, "argv", ["write_plan_table.py", "--table"])
    assert SCRIPT.main() == 0
    (row,) = (tmp_path / "table.md").read_text().splitlines()[2:]
    assert row.startswith("| unipixel_3b_stage3 | v5e-8 | fsdp 8 | 8 | half | gradients | full | 14.4 of 15.75 |")
