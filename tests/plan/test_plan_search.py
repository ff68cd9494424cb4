"""What a plan tries, what it advises, and what it refuses; no compiler needed."""

from dataclasses import dataclass, replace

import pytest

from unipixel_jax.config import preset
from unipixel_jax.core.chips import CHIPS
from unipixel_jax.core.mesh import MeshConfig
from unipixel_jax.errors import UserError
from unipixel_jax.plan import fit as search
from unipixel_jax.plan.cli import main, sizes
from unipixel_jax.plan.memory import Memory
from unipixel_jax.plan.plan import GRADIENTS, PREFILL, advice, check_programs
from unipixel_jax.plan.programs import Workload, sample_row
from unipixel_jax.plan.report import PlanReport, ProgramReport
from unipixel_jax.plan.roofline import Roofline
from unipixel_jax.plan.topology import Topology
from unipixel_jax.train.config import StartConfig
from unipixel_jax.train.recipes import stage3

GIB = 2.0**30
CONFIG = stage3("seven", "UniPixel-7B-stages12", "7b")


def topology(chips, slices=1):
    return Topology("pretended", CHIPS["v5e"], tuple(object() for _ in range(chips)), slices, 1, 1e9, 1e9)


def report_of(config, chips, needed, seconds=1.0):
    sizes = config.mesh.sizes(chips)
    memory = Memory({"needed": needed * GIB}, 15.75 * GIB)
    roofline = Roofline(seconds, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0) if memory.fits else None
    return PlanReport(config.name, "pretended", sizes, config.batch_size, config.remat, (ProgramReport(GRADIENTS, memory, None, roofline, 1.0),))


def test_candidates_keep_the_samples_of_a_step():
    found = list(search.candidates(CONFIG, topology(16)))
    assert {one.batch_size * one.accumulation for one in found} == {32}
    assert (found[0].batch_size, found[0].remat, found[0].mesh) == (32, "dots", MeshConfig("fsdp"))
    assert {one.mesh.context for one in found} == {1, 2, 4, 8}
    assert {one.mesh.preset for one in search.candidates(CONFIG, topology(16, slices=2))} == {"hybrid"}


@dataclass
class Pretended:
    """Programs that need so much memory, and take so long."""

    asked: list

    def __call__(self, config, model_config, topology, workload, programs):
        self.asked.append((config.batch_size, config.remat, config.mesh.context))
        needed = config.batch_size * (1.2 if config.remat == "dots" else 0.7) / config.mesh.context
        return report_of(config, 16, needed, seconds={"dots": 0.8, "full": 1.0}[config.remat] * config.batch_size)


def test_the_search_takes_the_fastest_that_fits(monkeypatch):
    made = Pretended([])
    monkeypatch.setattr(search, "make_plan", made)
    best, reports = search.fit(CONFIG, preset("7b"), topology(16), Workload())
    # a batch of 32 needs 38 GiB with dots and 22 with full, one of 16 needs 19 and 11
    assert made.asked[:4] == [(32, "dots", 1), (16, "dots", 1), (32, "full", 1), (16, "full", 1)]
    fitting = [report for report in reports if report.programs[0].memory.fits]
    assert best.remat in {report.remat for report in fitting} and len(reports) <= 6


def test_nothing_fits(monkeypatch):
    monkeypatch.setattr(search, "make_plan", lambda config, *_: report_of(config, 16, 100))
    with pytest.raises(UserError, match=r"nothing that was tried fits pretended: the nearest, mesh .* needs 100.00 GiB of 15.75 a chip"):
        search.fit(CONFIG, preset("7b"), topology(16), Workload())
    with pytest.raises(UserError, match="32 samples a step do not divide among 48 chips"):
        search.fit(CONFIG, preset("7b"), topology(48), Workload())


def test_advice_names_what_would_help():
    config = replace(CONFIG, batch_size=32, accumulation=1, remat="dots")
    (line,) = advice(report_of(config, 16, 20), config)
    assert line.startswith("gradients does not fit: 4.25 GiB too much")
    assert "--remat full" in line and "--batch-size 16 --accumulation 2" in line and "--mesh.context 2" in line
    assert advice(report_of(config, 16, 10), config) == []
    prefill = replace(report_of(config, 16, 20), programs=(ProgramReport(PREFILL, Memory({"needed": 20 * GIB}, 15.75 * GIB), None, None, 1.0),))
    assert "fewer prompts at a time (--prompts)" in advice(prefill, config)[0]


def test_sizes_come_from_what_is_there(tmp_path):
    assert sizes(None, CONFIG) == preset("7b") and sizes("3b", CONFIG) == preset("3b")
    nothing = replace(CONFIG, start=StartConfig("UniPixel-elsewhere"))
    with pytest.raises(UserError, match="UniPixel-elsewhere is not here, and no size is known: give --model 3b or 7b or tiny, or a converted directory"):
        sizes(None, nothing)


def test_a_clip_that_does_not_fit_its_conversation():
    from jax.sharding import AbstractMesh

    from unipixel_jax.core.mesh import AXES

    with pytest.raises(UserError, match=r"100 tokens do not hold a clip of 8 frames: use at least \d+, or fewer frames"):
        sample_row(preset("tiny"), Workload(tokens=100), AbstractMesh((1, 1, 1, 1), AXES))


def test_unknown_names():
    with pytest.raises(UserError, match="program 'training' is unknown: expected some of gradients, update, prefill, decode, track, language part"):
        check_programs(["training"])
    with pytest.raises(UserError, match=r"topology 'v5e:5x5' is unknown: .*v5e:\{1x1,2x2"):
        main(["configs/unipixel_7b_stage3.py", "--topology", "v5e:5x5"])
