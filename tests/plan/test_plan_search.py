"""The configurations that a plan tries, its advice, and its refusals; no compiler is needed."""

import json
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from jax.sharding import AbstractMesh

from unipixel_jax.cli import main, parse
from unipixel_jax.config import preset
from unipixel_jax.core.accelerators import CHIPS
from unipixel_jax.core.mesh import AXES, MeshConfig, mesh_sizes
from unipixel_jax.errors import UserError
from unipixel_jax.models.partition import check_heads
from unipixel_jax.plan import fit as search
from unipixel_jax.plan.advice import advice
from unipixel_jax.plan.cli import sizes
from unipixel_jax.plan.memory import Memory
from unipixel_jax.plan.plan import check_programs
from unipixel_jax.plan.programs import GRADIENTS, LANGUAGE, TRAINING, UPDATE, Workload, sample_row
from unipixel_jax.plan.report import PlanReport, ProgramReport, Serving
from unipixel_jax.plan.roofline import Roofline
from unipixel_jax.plan.serving import DECODE, PREFILL, SERVING, TRACK
from unipixel_jax.plan.topology import Topology
from unipixel_jax.train.config import StartConfig, load_config
from unipixel_jax.train.recipes import stage3

GIB = 2.0**30
SEVEN = Path(__file__).parents[2] / "configs" / "unipixel_7b_stage3.py"
CONFIG = stage3("seven", "UniPixel-7B-stages12", "7b")


def topology(chips, slices=1):
    devices = tuple(SimpleNamespace(platform="tpu", slice_index=i * slices // chips) for i in range(chips))
    return Topology("pretended", CHIPS["v5e"], devices, slices, 1, 1e9, 1e9)


def report_of(config, chips, needed, seconds=1.0, programs=(GRADIENTS,)):
    memory = Memory({"parameters": 0.6 * GIB, "needed": (needed - 0.6) * GIB}, 15.75 * GIB)
    roofline = Roofline(seconds, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0) if memory.fits else None
    found = tuple(ProgramReport(name, memory, None, roofline, 1.0) for name in programs)
    return PlanReport(config.name, "pretended", config.mesh.sizes(chips), config.batch_size, config.remat, False, found)


@dataclass
class Pretended:
    """In the place of the compiler: programs that need so many GiB, and take so long, by default a second for collectives and one for each sample."""

    memory: Callable
    seconds: Callable = lambda config: 1.0 + config.batch_size
    asked: list = field(default_factory=list)

    def __call__(self, config, model_config, topology, workload, programs):
        assert config.batch_size * config.accumulation == 32 and programs == (GRADIENTS,)
        self.asked.append((config.mesh, config.batch_size, config.remat))
        return report_of(config, len(topology.devices), self.memory(config), self.seconds(config))


def search_of(monkeypatch, pretended, chips, slices=1, size="7b"):
    monkeypatch.setattr(search, "plan_apart", pretended)
    told = []
    best = search.fit(CONFIG, preset(size), topology(chips, slices), Workload(), told.append)
    assert len(told) == len(pretended.asked) == len(set(pretended.asked)) <= search.MAX_COMPILATIONS
    return best


def test_only_all_chips_of_a_slice_together_can_hold_a_sample(monkeypatch):
    pretended = Pretended(lambda config: 200 / config.mesh.context)
    best = search_of(monkeypatch, pretended, 16)
    assert (best.mesh, best.batch_size, best.accumulation) == (MeshConfig("fsdp", context=16), 32, 1)
    assert pretended.asked[:3] == [(MeshConfig("fsdp", context=n), 16 // n, "full") for n in (1, 8, 16)]


@pytest.mark.parametrize("context", [2, 4, 8, 16, 32, 64])
def test_the_fewest_sharers_that_fit_are_found(monkeypatch, context):
    def memory(config):
        """15 GiB where just so many share a sample, of which there is one at once for each part of the mesh."""
        return 15 * context / 64 * config.batch_size * (2 if config.remat == "dots" else 1)

    best = search_of(monkeypatch, Pretended(memory), 64)
    assert (best.mesh.context, best.batch_size, best.remat) == (context, 64 // context, "full")


def test_a_plan_that_fits_goes_on_to_less_computed_again_and_more_at_once(monkeypatch):
    def memory(config):
        return config.batch_size * {"dots": 0.9, "half": 0.6, "full": 0.3}[config.remat]

    pretended = Pretended(memory, lambda config: 1.0 + config.batch_size * (0.8 if config.remat == "dots" else 1.0))
    best = search_of(monkeypatch, pretended, 16)
    assert (best.mesh, best.batch_size, best.remat) == (MeshConfig("fsdp"), 16, "dots")
    # 32 at once need 28.8 GiB with dots, 19.2 with half of the results and 9.6 without
    assert pretended.asked[:5] == [(MeshConfig("fsdp"), *tried) for tried in ((16, "full"), (16, "dots"), (32, "dots"), (32, "half"), (32, "full"))]
    # another mesh begins at the best
    assert pretended.asked[5] == (MeshConfig("dp"), 16, "dots")


def test_half_of_the_results_are_kept_where_all_do_not_fit(monkeypatch):
    needs = {"dots": 1.2, "half": 0.9, "full": 0.3}
    pretended = Pretended(lambda config: config.batch_size * needs[config.remat], lambda config: 1.0 + config.batch_size * (2 - needs[config.remat]))
    best = search_of(monkeypatch, pretended, 16)
    assert (best.batch_size, best.remat) == (16, "half")
    assert pretended.asked[:3] == [(MeshConfig("fsdp"), 16, remat) for remat in ("full", "dots", "half")]


def test_more_at_once_are_tried_with_everything_computed_again(monkeypatch):
    # fewer collectives are worth more here than fewer FLOPs
    memory, seconds = (lambda config: config.batch_size * {"dots": 0.9, "half": 0.6, "full": 0.3}[config.remat]), lambda config: 100.0 + config.batch_size
    best = search_of(monkeypatch, Pretended(memory, seconds), 16)
    assert (best.batch_size, best.remat) == (32, "full")


def test_the_fastest_that_fits_is_taken(monkeypatch):
    by_preset = {"fsdp": 3.0, "dp": 2.0, "fsdp_tp": 1.0}

    def memory(config):
        return 20 if config.mesh.context * config.mesh.tensor < 4 or config.remat == "dots" else 15

    pretended = Pretended(memory, lambda config: by_preset[config.mesh.preset] * (1.0 + config.batch_size))
    best = search_of(monkeypatch, pretended, 8)
    assert (best.mesh, best.batch_size) == (MeshConfig("fsdp_tp", tensor=4), 32)
    # 7B has 28 query heads, which 8 do not divide
    pretended = Pretended(lambda config: 20 if config.mesh.context < 8 else 15)
    search_of(monkeypatch, pretended, 8)
    assert {mesh.preset for mesh, *_ in pretended.asked} == {"fsdp"}


def test_weights_that_do_not_fit_every_chip_are_not_compiled_there(monkeypatch):
    # 0.6 GiB of weights a chip in a slice of 16 are 9.6 on each chip, and in one of 32 19.2
    for chips, presets in ((16, {"fsdp", "dp"}), (32, {"fsdp", "hybrid"})):
        pretended = Pretended(lambda config: 15.0 if config.remat == "full" and config.mesh.preset != "hybrid" else 16.0)
        search_of(monkeypatch, pretended, chips)
        assert {mesh.preset for mesh, *_ in pretended.asked} == presets


def test_groups_of_a_large_slice_and_slices(monkeypatch):
    best = search_of(monkeypatch, Pretended(lambda config: 15.0 if config.mesh.preset == "hybrid" else 16.0), 32)
    assert best.mesh == MeshConfig("hybrid", slices=2)
    pretended = Pretended(lambda _: 15.0)
    assert search_of(monkeypatch, pretended, 16, slices=2).mesh.slices == 2
    assert {mesh.preset for mesh, *_ in pretended.asked} == {"hybrid", "dp"}
    assert search.sharded_meshes(64, 2, 1) == [MeshConfig("hybrid", slices=4), MeshConfig("hybrid", slices=2)]
    assert search.sharded_meshes(64, 2, 32) == [MeshConfig("hybrid", slices=2, context=32)]


def test_compilations_are_bounded(monkeypatch, capsys):
    everything = Pretended(lambda config: 15.0)
    search_of(monkeypatch, everything, 1)
    assert {batch for _, batch, _ in everything.asked} == {1, 2, 4, 8, 16, 32}
    monkeypatch.setattr(search, "MAX_COMPILATIONS", 4)
    assert search_of(monkeypatch, Pretended(lambda config: 15.0), 1).batch_size == 4
    monkeypatch.undo()
    for chips in (2**n for n in range(10)):
        # to find what fits a slice takes less than that, whatever it is
        levels = len(search.context_sizes(chips, 1, 512))
        assert len(search.sharded_meshes(chips, 1, 1)) * (1 + (levels - 1).bit_length()) <= search.MAX_COMPILATIONS
    with pytest.raises(SystemExit):
        main(["plan", "--help"])
    assert f"{search.MAX_COMPILATIONS} compilations at most" in " ".join(capsys.readouterr().out.split())


def test_nothing_fits(monkeypatch):
    pretended = Pretended(lambda config: 116 - config.mesh.context)
    with pytest.raises(UserError, match=r"nothing that was tried fits pretended, up to all chips of a slice .* mesh context 16, .* needs 100.00 GiB of 15.75"):
        search_of(monkeypatch, pretended, 16)
    assert [mesh.context for mesh, *_ in pretended.asked] == [1, 8, 16]
    with pytest.raises(UserError, match="32 samples a step do not divide among 48 chips"):
        search_of(monkeypatch, pretended, 48, slices=3)


def test_a_refusal_for_one_topology_leaves_the_others(monkeypatch, tmp_path, capsys):
    def make_plan(config, model_config, topology, *_):
        if len(topology.devices) == 64:
            raise UserError("a batch of 8 does not divide among 64 parts")
        return report_of(config, len(topology.devices), 15.0)

    monkeypatch.setattr("unipixel_jax.plan.topology.open_topology", lambda name: replace(topology(int(name)), name=name))
    monkeypatch.setattr("unipixel_jax.plan.plan.make_plan", make_plan)
    written = tmp_path / "plans.json"
    arguments = [str(SEVEN), "--json", str(written), "--topology"]
    assert main(["plan", *arguments, "64"]) == 1 and not written.exists()
    assert main(["plan", *arguments, "64", "--topology", "8"]) == 1
    assert "64: a batch of 8 does not divide among 64 parts" in capsys.readouterr().err
    assert [report["mesh"]["fsdp"] for report in json.loads(written.read_text())] == [8]


@pytest.mark.parametrize(("full", "needed", "told"), [(False, 15.0, True), (False, 14.9, False), (False, 16.0, False), (True, 15.0, False)])
def test_a_plan_of_least_effort_that_just_fits_is_no_promise(monkeypatch, capsys, full, needed, told):
    def make_plan(config, model_config, topology, workload, programs, prompts, full_effort, tensor):
        assert full_effort == full
        return replace(report_of(config, len(topology.devices), needed), full_effort=full_effort)

    monkeypatch.setattr("unipixel_jax.plan.topology.open_topology", lambda name: topology(int(name)))
    monkeypatch.setattr("unipixel_jax.plan.plan.make_plan", make_plan)
    assert main(["plan", str(SEVEN), "--topology", "8", *(["--full-effort"] if full else [])]) == int(needed > 15.75)
    assert ("gradients fills 95%: a run's program needs a little more; see --full-effort" in capsys.readouterr().out) == told


PLANNED = {
    "32 at once": ([16], ["--batch-size", "32", "--accumulation", "1", "--remat", "dots"]),
    "one a chip": ([16], ["--batch-size", "16", "--accumulation", "2"]),
    "three a chip": ([16], ["--batch-size", "48", "--accumulation", "1"]),
    "all for one": ([16], ["--batch-size", "1", "--accumulation", "32", "--mesh.context", "16"]),
    "weights everywhere": ([8], ["--mesh.preset", "dp"]),
    "divided products": ([8], ["--mesh.preset", "fsdp_tp", "--mesh.tensor", "2"]),
    "one chip": ([8], ["--mesh.preset", "single"]),
    "two slices": ([16, 2], ["--mesh.preset", "hybrid", "--batch-size", "16"]),
    "groups": ([16], ["--mesh.preset", "hybrid", "--mesh.slices", "4", "--batch-size", "16"]),
}


@pytest.mark.parametrize("program", TRAINING)
@pytest.mark.parametrize("planned", PLANNED)
def test_advice_is_what_the_command_accepts(planned, program):
    chips, arguments = PLANNED[planned]
    config = load_config(SEVEN, arguments)
    (line,) = advice(report_of(config, chips[0], 20, programs=(program,)), config, preset("7b"), topology(*chips))
    start, _, named = line.partition("one of: ")
    assert start.startswith(f"{program} does not fit: 4.25 GiB too much. More chips")
    for knob in named.split("; ") if named else ():
        other = load_config(SEVEN, [*arguments, *knob.split()])
        assert other != config
        sizes = mesh_sizes(other.mesh, topology(*chips).devices)
        assert other.batch_size % (sizes["data"] * sizes["fsdp"]) == 0
        assert other.batch_size * other.accumulation == config.batch_size * config.accumulation
        check_heads(preset("7b"), AbstractMesh(tuple(sizes.values()), AXES))


@pytest.mark.parametrize(
    ("program", "served", "chips", "named"),
    [
        (DECODE, Serving(1, 1, 32, 0.01), 1, "More chips, or one of: --prompts 16"),
        (DECODE, Serving(1, 8, 32, 0.01), 8, "More chips, or one of: --prompts 16; --tensor 2"),
        (PREFILL, Serving(2, 4, 1, 0.0), 8, "More chips, or one of: --tensor 4"),
        (TRACK, Serving(1, 1, 1, 0.0), 1, "More chips"),
    ],
)
def test_advice_for_serving(program, served, chips, named):
    report = report_of(CONFIG, chips, 20, programs=(program,))
    report = replace(report, programs=tuple(replace(one, serving=served) for one in report.programs))
    (line,) = advice(report, CONFIG, preset("7b"), topology(chips))
    assert line == f"{program} does not fit: 4.25 GiB too much. {named}" and program in SERVING


@pytest.mark.parametrize(
    ("planned", "program", "named"),
    [
        ("32 at once", GRADIENTS, "More chips, or one of: --remat full; --batch-size 16 --accumulation 2"),
        ("32 at once", LANGUAGE, "More chips, or one of: --remat full; --batch-size 16 --accumulation 2"),
        ("one a chip", GRADIENTS, "More chips, or one of: --mesh.context 2 --batch-size 8 --accumulation 4"),
        ("three a chip", GRADIENTS, "More chips, or one of: --batch-size 16 --accumulation 3"),
        ("all for one", GRADIENTS, "More chips"),
        ("weights everywhere", GRADIENTS, "More chips, or one of: --mesh.context 2 --batch-size 4 --accumulation 8; --mesh.preset fsdp"),
        ("two slices", GRADIENTS, "More chips, or one of: --mesh.context 2 --batch-size 8 --accumulation 8"),
        ("one a chip", UPDATE, "More chips to shard the weights over, or fewer trained weights"),
        ("weights everywhere", UPDATE, "More chips to shard the weights over, or fewer trained weights, or one of: --mesh.preset fsdp"),
    ],
)
def test_advice_names_what_would_help(planned, program, named):
    chips, arguments = PLANNED[planned]
    config = load_config(SEVEN, arguments)
    (line,) = advice(report_of(config, chips[0], 20, programs=(program,)), config, preset("7b"), topology(*chips))
    assert line == f"{program} does not fit: 4.25 GiB too much. {named}"
    assert advice(report_of(config, chips[0], 10, programs=(program,)), config, preset("7b"), topology(*chips)) == []


def test_sizes_come_from_what_is_there(tmp_path):
    assert sizes(None, CONFIG) == preset("7b") and sizes("3b", CONFIG) == preset("3b")
    nothing = replace(CONFIG, start=StartConfig("UniPixel-elsewhere"))
    with pytest.raises(UserError, match="UniPixel-elsewhere is not here, and no size is known: give --model 3b or 7b or tiny, or a converted directory"):
        sizes(None, nothing)


def test_a_clip_that_does_not_fit_its_conversation():
    with pytest.raises(UserError, match=r"100 tokens do not hold a clip of 8 frames: use at least \d+, or fewer frames"):
        sample_row(preset("tiny"), Workload(tokens=100), AbstractMesh((1, 1, 1, 1), AXES))


def test_unknown_names():
    with pytest.raises(UserError, match="program 'training' is unknown: expected some of gradients, update, prefill, decode, track, language part"):
        check_programs(["training"])
    args = Namespace()
    parse(["plan", "configs/unipixel_7b_stage3.py", "--topology", "v5e:5x5"], args)
    with pytest.raises(UserError, match=r"topology 'v5e:5x5' is unknown: .*v5e:\{1x1,2x2"):
        args.run(args)
