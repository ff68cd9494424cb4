"""Rooflines, names of topologies, memory and reports, computed from made-up costs."""

import io
import json
import sys

import pytest
from rich.console import Console

from unipixel_jax.core.accelerators import CHIPS, usable
from unipixel_jax.errors import UserError
from unipixel_jax.plan.hlo import Costs, Operation
from unipixel_jax.plan.hlo_collectives import Collective
from unipixel_jax.plan.memory import GIB, NEEDED, Memory, refused_for_memory
from unipixel_jax.plan.movers import Mover
from unipixel_jax.plan.report import MARKDOWN, SERVING_MARKDOWN, PlanReport, ProgramReport, Serving, plot
from unipixel_jax.plan.roofline import Roofline
from unipixel_jax.plan.topology import ACCELERATOR_TYPES, SHAPES, Topology, _split, open_topology

V5E = Topology("2*v5e:4x4", CHIPS["v5e"], (), 2, 8, 200e9, 3.125e9)
GATHER = Collective("all-gather", 16, 1, 72, 20e9)
REDUCE = Collective("all-reduce", 32, 2, 36, 31e9)
OPERATIONS = (
    Operation("fusion.1", "fusion", "jit(step)/dot_general", 36, 197e12, 819e9),
    Operation("all-gather.1", "all-gather", "jit(step)/squeeze", 72, 0.0, 0.0, GATHER),
    Operation("all-reduce.1", "all-reduce", "", 36, 0.0, 0.0, REDUCE),
    Operation("kernel.1", "tpu_custom_call", "", 1, 0.0, 8.0, None, told=False),
)
COSTS = Costs(197e12, 819e9, (REDUCE, GATHER), OPERATIONS)


def report():
    roofline = Roofline.of(COSTS, V5E, 98.5e12)
    fits = ProgramReport("train step", Memory({"parameters": 3 * GIB, "temporaries": 5.5 * GIB}, 15.75 * GIB), COSTS, roofline, 31.25)
    refused = ProgramReport("prefill", Memory({NEEDED: 58.99 * GIB}, 15.75 * GIB), None, None, 0.5)
    return PlanReport("unipixel_7b", "2*v5e:4x4", {"data": 2, "fsdp": 16, "tensor": 1}, 256, "full", False, (fits, refused))


def test_the_longest_time_binds():
    roofline = Roofline.of(COSTS, V5E, 98.5e12)
    assert roofline.compute == roofline.hbm == 1.0
    # one of the 31 shards that a chip of 32 fetches is from the other slice: 1e9 of 31e9 bytes
    assert roofline.links == pytest.approx(50e9 / 200e9) and roofline.network == pytest.approx(1e9 / 3.125e9)
    assert roofline.bound == "compute" and roofline.seconds == 1.0 and roofline.mfu == 0.5
    assert roofline.intensity == pytest.approx(197e12 / 819e9)


@pytest.mark.parametrize(
    ("costs", "bound", "seconds"),
    [
        (Costs(0.0, 819e9, ()), "hbm", 1.0),
        (Costs(0.0, 0.0, (Collective("all-gather", 16, 1, 1, 400e9),)), "links", 2.0),
        (Costs(0.0, 0.0, (Collective("all-reduce", 2, 2, 1, 6.25e9),)), "network", 2.0),
    ],
)
def test_what_binds(costs, bound, seconds):
    roofline = Roofline.of(costs, V5E, 98.5e12)
    assert (roofline.bound, roofline.seconds, roofline.mfu) == (bound, seconds, 0.5 / seconds)


def test_one_chip_has_no_links_and_needs_none():
    alone = Topology("v5e:1x1", CHIPS["v5e"], (), 1, 1, 0.0, 3.125e9)
    assert Roofline.of(Costs(197e12, 0.0, ()), alone, 197e12).mfu == 1.0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("v5e:8x8", (1, "v5e", "8x8")),
        ("v5e-16", (1, "v5e", "4x4")),
        ("v5litepod-16", (1, "v5e", "4x4")),
        ("v6e-16", (1, "v6e", "4x4")),
        ("v5p-16", (1, "v5p", "2x2x2")),
        ("2*v5p-16", (2, "v5p", "2x2x2")),
        ("4*v6e:16x16", (4, "v6e", "16x16")),
        ("h100:8", (1, "h100", "1x8")),
        ("a100:2x8", (1, "a100", "2x8")),
    ],
)
def test_names(name, expected):
    assert _split(name) == expected


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("v5e:8x9", "v5e:8x8"), ("v5e-17", "v5e-1"), ("V6E-16", "v6e-16"), ("h100:9", "h100:8"), ("0*v5e-16", "v5e-16"), ("2*h100:8", "h100:8")],
)
def test_names_that_nobody_has(name, nearest):
    with pytest.raises(UserError) as error:
        open_topology(name)
    assert f"topology {name!r} is unknown: did you mean {nearest!r}?" in str(error.value)
    assert "v5p:{2x2x1,2x2x2," in str(error.value) and "h100:2x8" in str(error.value) and "\n" not in str(error.value)


def test_accelerator_types_count_what_google_counts():
    assert ACCELERATOR_TYPES["v5e-256"] == "v5e:16x16" and ACCELERATOR_TYPES["v5p-512"] == "v5p:4x8x8" and ACCELERATOR_TYPES["v5p-8"] == "v5p:2x2x1"
    assert len(ACCELERATOR_TYPES) == sum(map(len, SHAPES.values()))


def test_what_a_slice_is():
    assert Topology("x", CHIPS["v5e"], (None,) * 6, 3, 3, 1.0, 1.0).slice_of == (0, 0, 1, 1, 2, 2)


@pytest.mark.parametrize(
    ("text", "needed", "available"),
    [
        ("E1000: CompileTimeHbmOom: the total memory required for HLO temporaries (58.99G) exceeds available HBM (15.75G).", 58.99 * GIB, 15.75 * GIB),
        ("Ran out of memory in memory space hbm. Used 16.93G of 15.75G hbm. Exceeded hbm capacity by 1.18G.", 16.93 * GIB, 15.75 * GIB),
        ("Used 900.0M of 512.0M hbm.", 900 * 2**20, 512 * 2**20),
    ],
)
def test_a_refusal_is_read(text, needed, available):
    memory = refused_for_memory(RuntimeError(f"RESOURCE_EXHAUSTED: {text}"))
    assert memory.total == pytest.approx(needed) and memory.capacity == pytest.approx(available) and not memory.fits


def test_another_error_is_none_of_memory():
    assert refused_for_memory(RuntimeError("RESOURCE_EXHAUSTED: E1001: CompileTimeScopedVmemOom: size 64.00M")) is None
    assert refused_for_memory(RuntimeError("INTERNAL: something")) is None


def test_usable_memory_is_less_than_the_chip_has():
    assert usable(CHIPS["v6e"]) == 31.25 * GIB and usable(CHIPS["h100"]) == 0.95 * CHIPS["h100"].memory


def test_a_report_comes_back_from_json():
    told = report().to_json()
    again = PlanReport.from_json(json.loads(json.dumps(told)))
    assert again == report() and again.to_json() == told
    first = told["programs"][0]
    assert first["roofline"]["bound"] == "compute" and first["roofline"]["mfu"] == 0.5 and first["memory"]["fits"] is True
    assert told["programs"][1]["costs"] is None and told["programs"][1]["memory"]["parts"] == {NEEDED: 58.99 * GIB}
    assert set(told) == {"config", "topology", "mesh", "batch_size", "remat", "full_effort", "programs"}


def test_json_keeps_the_largest_operations_and_the_silent():
    small = tuple(Operation(f"add.{i}", "add", "", 1, 0.0, 1.0) for i in range(50))
    costs = Costs(197e12, 819e9, (REDUCE, GATHER), (*small, *OPERATIONS))
    program = ProgramReport("train step", Memory({}, 1.0), costs, Roofline.of(costs, V5E, 1.0), 1.0)
    kept = PlanReport("c", "t", {}, 1, "none", True, (program,)).to_json()["programs"][0]["costs"]["operations"]
    assert len(kept) < 30 and {o.name for o in OPERATIONS} <= {o["name"] for o in kept}


@pytest.mark.parametrize("found", [{}, [], {"programs": [{}]}, {"programs": None}])
def test_what_is_no_report(found):
    with pytest.raises(UserError, match="no plan's report"):
        PlanReport.from_json(found)


def test_the_table_says_what_binds_and_what_does_not_fit():
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(report().table())
    text = console.export_text()
    for part in ("unipixel_7b on 2*v5e:4x4, mesh data 2 x fsdp 16, batch of 256", "8.50 of 15.75", "59.0 of 15.75 (too much)", "50.0%", "compute"):
        assert part in text
    assert "all-reduce of 32 across slices" in text and "36 x, 31.0 GB" in text and "tpu_custom_call" in text


def test_rows_of_markdown():
    rows = report().markdown_rows().splitlines()
    columns = {line.count("|") for line in (*MARKDOWN.splitlines(), *rows)}
    assert len(columns) == 1 and len(rows) == 2
    assert rows[0].startswith("| unipixel_7b | 2*v5e:4x4 | data 2 x fsdp 16 | 256 | full | train step | least | 8.50 of 15.75 | 1,000 | 1,000 |")
    assert rows[0].endswith("| 250 | 320 | compute | 50.0% |")
    assert "does not fit" in rows[1]


def test_a_plot(tmp_path):
    pytest.importorskip("matplotlib")
    plot([report()], tmp_path / "plan.png")
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG") and [p.name for p in tmp_path.iterdir()] == ["plan.png"]


def test_a_plot_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"pip install 'unipixel-jax\[plot\]'"):
        plot([report()], tmp_path / "plan.png")
    assert not list(tmp_path.iterdir())


def served_report():
    memory, roofline = Memory({"parameters": 7 * GIB}, 15.75 * GIB), Roofline.of(COSTS, V5E, 1.0)
    mover = Mover("text.blocks.mlp.down", "matrix product", 2e9, 0.25)
    decode = ProgramReport("decode", memory, COSTS, roofline, 1.0, Serving(2, 4, 8, 0.8), (mover,))
    track = ProgramReport("track", memory, COSTS, roofline, 1.0, Serving(2, 4, 1, 0.0))
    return PlanReport("unipixel_7b", "v5e-8", {"tensor": 2}, 8, "full", True, (decode, track))


def test_decoding_is_measured_by_reading_the_weights_once():
    report = served_report()
    decode, track = report.programs
    assert (decode.times_reading, decode.tokens_per_second) == (1.0 / 0.8, 32.0) and track.times_reading is track.tokens_per_second is None
    assert report.title == "unipixel_7b on v5e-8, weights tensor 2, 4 copies, 8 answers at once, full effort"
    assert report.moving() == ["decode moves: text.blocks.mlp.down: matrix product, 2 GB (25%)"]
    told = json.loads(json.dumps(report.to_json()))
    assert told["programs"][0]["serving"]["times_reading"] == 1.25 and told["programs"][0]["movers"][0]["share"] == 0.25
    assert PlanReport.from_json(told) == report
    first, second = report.serving_rows().splitlines()
    assert {line.count("|") for line in (*SERVING_MARKDOWN.splitlines(), first, second)} == {first.count("|")}
    assert first.startswith("| unipixel_7b | v5e-8 | tensor 2, 4 copies | 8 | decode | full |") and first.endswith("| 1.25 | 32.0 |")
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(report.table())
    assert "times reading the weights once" in (text := console.export_text()) and "tokens per second at most" in text
