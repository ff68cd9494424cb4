"""The command, with a small model on chips that are not here."""

import json

import pytest

from unipixel_jax.cli import main

CONFIG = """
from dataclasses import replace
from unipixel_jax.train.config import StartConfig
from unipixel_jax.train.optim import OptimConfig
from unipixel_jax.synthetic.recipe import SHAPES_MODEL, shapes


def get_config():
    run = shapes("small", StartConfig(model=SHAPES_MODEL), "shapes_image", learning_rate=1e-3, steps=10, interval=5)
    return replace(run, remat="full", optim=OptimConfig(1e-3))
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "small.py"
    path.write_text(CONFIG)
    return str(path)


@pytest.mark.chips
def test_a_batch_that_does_not_divide(config, capsys):
    assert main(["plan", config, "--topology", "v5e:4x8"]) == 1
    assert "a batch of 8 does not divide among the 32 parts of the mesh" in capsys.readouterr().err


@pytest.mark.chips
def test_plan_of_a_small_model(config, tmp_path):
    out = tmp_path / "plan.json"
    status = main(["plan", config, "--topology", "v5e:2x2", "--tokens", "512", "--frames", "2", "--json", str(out), "--dtype", "bfloat16"])
    (report,) = json.loads(out.read_text())
    programs = {program["name"]: program for program in report["programs"]}
    assert status == 0 and list(programs) == ["gradients", "update", "prefill", "decode", "track"]
    assert report["mesh"] == {"data": 1, "fsdp": 4, "context": 1, "tensor": 1}
    gradients, update = programs["gradients"], programs["update"]
    assert gradients["memory"]["fits"] and gradients["memory"]["parts"]["optimizer"] == update["memory"]["parts"]["optimizer"]
    # everything is trained: two float32 moments for every float32 weight
    assert 1.9 < update["memory"]["parts"]["optimizer"] / update["memory"]["parts"]["parameters"] < 2.1
    assert gradients["costs"]["flops"] > programs["prefill"]["costs"]["flops"] > programs["decode"]["costs"]["flops"] > 0
    assert {c["kind"] for c in gradients["costs"]["collectives"]} >= {"all-gather"}


@pytest.mark.chips
def test_full_effort_keeps_arrays_near_the_units(config, tmp_path):
    found = []
    for effort in ([], ["--full-effort"]):
        out = tmp_path / f"plan{len(effort)}.json"
        arguments = ["--topology", "v5e:2x2", "--tokens", "512", "--frames", "2", "--programs", "prefill", "--json", str(out)]
        assert main(["plan", config, *arguments, *effort, "--dtype", "bfloat16"]) == 0
        found += json.loads(out.read_text())
    least, full = (report["programs"][0]["costs"] for report in found)
    assert [report["full_effort"] for report in found] == [False, True]
    assert full["bytes"] < 0.7 * least["bytes"]


@pytest.mark.chips
def test_serving_of_a_small_model(config, tmp_path, capsys):
    out = tmp_path / "plan.json"
    arguments = ["--tokens", "512", "--frames", "2", "--programs", "decode", "--prompts", "2", "8", "--json", str(out)]
    assert main(["plan", config, "--topology", "v5e-1", "--topology", "v6e-1", "--topology", "h100:1", *arguments]) == 0
    reports = json.loads(out.read_text())
    assert [(r["topology"], r["batch_size"]) for r in reports] == [(name, together) for name in ("v5e-1", "v6e-1", "h100:1") for together in (2, 8)]
    for report in reports:
        programs = {program["name"]: program for program in report["programs"]}
        served = programs["decode"]["serving"]
        assert served["tensor"] == served["copies"] == 1 and served["times_reading"] > 1 and served["tokens_per_second"] > 0
        assert all(1 <= len(program["movers"]) <= 5 for program in report["programs"])
        assert any(mover["place"].startswith("text.blocks.mlp") for mover in programs["decode"]["movers"])
    assert "decode moves: text.blocks.mlp" in capsys.readouterr().out
    assert main(["plan", config, "--topology", "v5e-4", *arguments, "--tensor", "2"]) == 0
    shared = {program["name"]: program for program in json.loads(out.read_text())[0]["programs"]}["decode"]
    assert (shared["serving"]["tensor"], shared["serving"]["copies"]) == (2, 2)
    assert {c["kind"] for c in shared["costs"]["collectives"]} >= {"all-reduce"}
