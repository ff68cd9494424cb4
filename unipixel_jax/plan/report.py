"""The report of a plan, and how it is shown: as a table, as JSON, as rows of Markdown and as an image."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from unipixel_jax.core.files import replacing
from unipixel_jax.errors import UserError
from unipixel_jax.plan.hlo import Costs, Operation
from unipixel_jax.plan.hlo_collectives import Collective
from unipixel_jax.plan.memory import GIB, Memory
from unipixel_jax.plan.movers import Mover
from unipixel_jax.plan.roofline import BOUNDS, Roofline

LABELS = {"compute": "compute", "hbm": "HBM", "links": "links", "network": "network"}
MARKDOWN = (
    "| config | topology | mesh | batch | remat | program | effort | memory, GiB | compute, ms | HBM, ms | links, ms | network, ms | bound | MFU at most |\n"
    "| --- | --- | --- | ---: | --- | --- | --- | ---: | ---: | ---: | ---: | ---: | --- | ---: |"
)
"""The head of the Markdown table whose rows ``PlanReport.markdown_rows`` gives."""

SERVING_MARKDOWN = (
    "| model | topology | weights | at once | program | effort | memory, GiB | compute, ms | HBM, ms | links, ms | bound | times reading | tokens a second |\n"
    "| --- | --- | --- | ---: | --- | --- | ---: | ---: | ---: | ---: | --- | ---: | ---: |"
)
"""The head of the Markdown table whose rows ``PlanReport.serving_rows`` gives."""

_KEPT = 20
"""How many of the largest collectives, and of the instructions that move the most bytes, the JSON keeps."""


@dataclass(frozen=True)
class Serving:
    """How a program of inference is served.

    Attributes:
        tensor: number of chips that share a copy of the weights and run the program together.
        copies: number of copies that the topology holds, each of which runs the program by itself.
        together: number of prompts, answers or clips of one execution.
        reading: seconds in which a chip's main memory reads once the weights that a token of an answer needs; 0 for other programs than decoding.
    """

    tensor: int
    copies: int
    together: int
    reading: float

    @property
    def text(self) -> str:
        """How the chips hold the weights, in words."""
        each = "whole" if self.tensor == 1 else f"tensor {self.tensor}"
        return each if self.copies == 1 else f"{each}, {self.copies} copies"


@dataclass(frozen=True)
class ProgramReport:
    """One compiled program.

    Attributes:
        name: the program's name, such as "gradients".
        memory: the memory that it needs on one chip.
        costs, roofline: its costs and roofline on one chip; None for a program that the compiler refused, since it does not fit.
        compile_seconds: seconds that the compiler took on this machine.
        serving: how it is served; None for a program of training.
        movers: the places in the model that move the most bytes of main memory, the largest first.
    """

    name: str
    memory: Memory
    costs: Costs | None
    roofline: Roofline | None
    compile_seconds: float
    serving: Serving | None = None
    movers: tuple[Mover, ...] = ()

    @property
    def times_reading(self) -> float | None:
        """The roofline's time as a multiple of that of reading the weights once, for decoding; no step of an answer takes less than 1."""
        return self.roofline.seconds / self.serving.reading if self.serving and self.serving.reading and self.roofline else None

    @property
    def tokens_per_second(self) -> float | None:
        """The most tokens that all copies together generate in a second, for decoding."""
        return self.serving.together * self.serving.copies / self.roofline.seconds if self.times_reading and self.serving and self.roofline else None


@dataclass(frozen=True)
class PlanReport:
    """A plan of a run on a topology.

    Attributes:
        config: the configuration's name.
        topology: the topology's name.
        mesh: sizes of the mesh's axes, by name.
        batch_size: samples of a batch, over all chips.
        remat: name of the rematerialisation policy.
        full_effort: whether the programs were compiled as a run compiles them.
        programs: the programs' reports, in the order in which they were compiled.
    """

    config: str
    topology: str
    mesh: Mapping[str, int]
    batch_size: int
    remat: str
    full_effort: bool
    programs: tuple[ProgramReport, ...]

    @property
    def title(self) -> str:
        """The plan in one line."""
        if (served := self.programs[0].serving) is not None:
            return f"{self.config} on {self.topology}, weights {served.text}, {self.batch_size} answers at once, {self.effort} effort"
        return f"{self.config} on {self.topology}, mesh {self.mesh_text}, batch of {self.batch_size}, remat {self.remat}, {self.effort} effort"

    @property
    def short_title(self) -> str:
        """The plan in a few words, without what most rows of an image have in common."""
        return f"{self.config}, {self.topology}, {self.mesh_text}{', full effort' if self.full_effort else ''}"

    @property
    def effort(self) -> str:
        """The compiler's effort: "full" as for a run, or "least"."""
        return "full" if self.full_effort else "least"

    @property
    def mesh_text(self) -> str:
        """The mesh in words, such as "fsdp 16 x tensor 2"; axes of one chip are left out."""
        return " x ".join(f"{name} {size}" for name, size in self.mesh.items() if size > 1) or "1 chip"

    def table(self) -> Table:
        """Return a table for the terminal, of figures per chip with a column for each program."""
        table = Table("per chip", title=self.title)
        for program in self.programs:
            table.add_column(program.name, justify="right")
        for label, cells in self._lines():
            if label is None:
                table.add_section()
            elif any(cells):
                table.add_row(label, *cells)
        uncounted = sorted({name for program in self.programs if program.costs for name in program.costs.kernels_without_flops})
        if uncounted:
            table.caption = f"without the FLOPs of kernels that do not state theirs: {', '.join(uncounted)}"
        return table

    def moving(self) -> list[str]:
        """Return a line for each program and each place in the model that moves much of its main memory's traffic."""
        return [f"{program.name} moves: {mover}" for program in self.programs for mover in program.movers]

    def _lines(self) -> list[tuple[str | None, list[str]]]:
        programs = self.programs
        parts = dict.fromkeys(name for program in programs for name in program.memory.parts)
        lines: list[tuple[str | None, list[str]]] = [
            (f"{name}, GiB", [_number(p.memory.parts[name] / GIB) if p.memory.parts.get(name) else "" for p in programs]) for name in parts
        ]
        verdict = ("" if p.memory.fits else " (too much)" for p in programs)
        lines.append(("memory, GiB", [f"{_number(p.memory.total / GIB)} of {p.memory.capacity / GIB:.2f}{v}" for p, v in zip(programs, verdict, strict=True)]))
        lines.append((None, []))
        lines.append(("TFLOPs", [_number(p.costs.flops / 1e12) if p.costs else "" for p in programs]))
        lines.append(("memory traffic, GB", [_number(p.costs.bytes / 1e9) if p.costs else "" for p in programs]))
        kinds = dict.fromkeys(_sort(c) for p in programs if p.costs for c in p.costs.collectives)
        for kind in kinds:
            lines.append((kind, [_sent([c for c in p.costs.collectives if _sort(c) == kind]) if p.costs else "" for p in programs]))
        lines.append((None, []))
        for name in BOUNDS:
            lines.append((f"{LABELS[name]}, ms", [_number(getattr(p.roofline, name) * 1e3) if p.roofline else "" for p in programs]))
        lines.append(("bound by", [LABELS[p.roofline.bound] if p.roofline else "" for p in programs]))
        lines.append(("FLOPs per byte", [_number(p.roofline.intensity) if p.roofline else "" for p in programs]))
        lines.append(("MFU at most", [f"{p.roofline.mfu:.1%}" if p.roofline else "" for p in programs]))
        lines.append(("times reading the weights once", [f"{p.times_reading:.2f}" if p.times_reading else "" for p in programs]))
        lines.append(("tokens per second at most", [_number(p.tokens_per_second) if p.tokens_per_second else "" for p in programs]))
        lines.append(("weights", [p.serving.text if p.serving else "" for p in programs]))
        lines.append(("prompts, answers or clips at once", [str(p.serving.together) if p.serving else "" for p in programs]))
        lines.append(("compiled in, s", [f"{p.compile_seconds:.1f}" for p in programs]))
        return lines

    def markdown_rows(self) -> str:
        """Return a row for each program, to stand below ``MARKDOWN``."""
        rows = []
        for p in self.programs:
            memory = f"{_number(p.memory.total / GIB)} of {p.memory.capacity / GIB:.2f}"
            times = [_number(getattr(p.roofline, name) * 1e3) if p.roofline else "" for name in BOUNDS]
            ends = [LABELS[p.roofline.bound], f"{p.roofline.mfu:.1%}"] if p.roofline else ["does not fit", ""]
            mesh, batch, remat = (p.serving.text, p.serving.together, "") if p.serving else (self.mesh_text, self.batch_size, self.remat)
            cells = [self.config, self.topology, mesh, str(batch), remat, p.name, self.effort, memory, *times, *ends]
            rows.append(f"| {' | '.join(cells)} |")
        return "\n".join(rows)

    def serving_rows(self) -> str:
        """Return a row for each program of inference, to stand below ``SERVING_MARKDOWN``."""
        rows = []
        for p in self.programs:
            if p.serving is None:
                continue
            memory = f"{_number(p.memory.total / GIB)} of {p.memory.capacity / GIB:.2f}"
            times = [_number(getattr(p.roofline, name) * 1e3) if p.roofline else "" for name in ("compute", "hbm", "links")]
            bound = LABELS[p.roofline.bound] if p.roofline and p.memory.fits else "does not fit"
            speed = [f"{p.times_reading:.2f}", _number(p.tokens_per_second)] if p.times_reading and p.tokens_per_second else ["", ""]
            cells = [self.config, self.topology, p.serving.text, str(p.serving.together), p.name, self.effort, memory, *times, bound, *speed]
            rows.append(f"| {' | '.join(cells)} |")
        return "\n".join(rows)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values.

        Of the operations, those that ``Costs.largest`` names are kept, and kernels without FLOPs. Figures that follow from others, such as totals, are added
        for readers.
        """
        found = dataclasses.asdict(dataclasses.replace(self, programs=tuple(_shortened(p) for p in self.programs)))
        for program, entry in zip(self.programs, found["programs"], strict=True):
            entry["memory"] |= {"total": program.memory.total, "fits": program.memory.fits}
            if program.roofline is not None:
                entry["roofline"] |= {name: getattr(program.roofline, name) for name in ("bound", "seconds", "mfu")}
            if program.times_reading is not None:
                entry["serving"] |= {name: getattr(program, name) for name in ("times_reading", "tokens_per_second")}
        return json.loads(json.dumps(found))

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> PlanReport:
        """Return the report from the values of ``to_json``.

        Raises:
            UserError: the values are no report.
        """
        try:
            programs = tuple(_program(entry) for entry in found["programs"])
            return cls(found["config"], found["topology"], dict(found["mesh"]), found["batch_size"], found["remat"], found["full_effort"], programs)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"no plan's report ({error!r}): expected what `unipixel-jax plan --json` writes") from None


def _program(found: Mapping[str, Any]) -> ProgramReport:
    memory = Memory(dict(found["memory"]["parts"]), found["memory"]["capacity"])
    costs, roofline = found["costs"], found["roofline"]
    if costs is not None:
        collectives = tuple(Collective(**c) for c in costs["collectives"])
        operations = tuple(Operation(**{**o, "collective": Collective(**o["collective"]) if o["collective"] else None}) for o in costs["operations"])
        costs = Costs(costs["flops"], costs["bytes"], collectives, operations)
    if roofline is not None:
        roofline = Roofline(**{field.name: roofline[field.name] for field in dataclasses.fields(Roofline)})
    # reports of earlier versions say neither
    served, moving = found.get("serving"), found.get("movers", ())
    serving = None if served is None else Serving(**{field.name: served[field.name] for field in dataclasses.fields(Serving)})
    return ProgramReport(found["name"], memory, costs, roofline, found["compile_seconds"], serving, tuple(Mover(**mover) for mover in moving))


def _shortened(program: ProgramReport) -> ProgramReport:
    if program.costs is None:
        return program
    kept = {id(o) for largest in program.costs.largest(_KEPT) for o in largest}
    operations = tuple(o for o in program.costs.operations if id(o) in kept or not o.told)
    return dataclasses.replace(program, costs=dataclasses.replace(program.costs, operations=operations))


def _sort(collective: Collective) -> str:
    return f"{collective.kind} of {collective.group}{' across slices' if collective.crosses_slices else ''}"


def _sent(collectives: Sequence[Collective]) -> str:
    return f"{sum(c.count for c in collectives)} x, {_number(sum(c.bytes for c in collectives) / 1e9)} GB" if collectives else ""


def _number(value: float) -> str:
    """Format a number with three significant digits and without an exponent."""
    if value == 0:
        return "0"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.{1 if value >= 10 else 2}f}" if value >= 1 else f"{value:.3g}" if value >= 1e-4 else "0.0000"


def plot(reports: Sequence[PlanReport], path: Path) -> None:
    """Draw two charts side by side, with a group of bars for each program of each plan.

    The left one shows the memory per chip by part, with the chip's capacity, and the right one the roofline's times.

    Args:
        reports: plans with at least one program in all.
        path: the file to write; its suffix says the format.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        from matplotlib import color_sequences
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("a plot needs matplotlib: pip install 'unipixel-jax[plot]'") from None
    rows = [(report, program) for report in reports for program in report.programs]
    alone = len({report.title for report, _ in rows}) == 1
    names = [program.name if alone else f"{program.name}\n{report.short_title}" for report, program in rows]
    figure = Figure(figsize=(13, 2.0 + (0.55 if alone else 0.75) * len(rows)), layout="constrained")
    memory, times = figure.subplots(1, 2, sharey=True)
    places = range(len(rows))

    memory.set_prop_cycle(color=color_sequences["tab20"])
    parts = dict.fromkeys(name for _, program in rows for name in program.memory.parts)
    starts = [0.0] * len(rows)
    largest = max(program.memory.total for _, program in rows) / GIB
    for part in parts:
        sizes = [program.memory.parts.get(part, 0.0) / GIB for _, program in rows]
        # parts that are too thin to see are left out of the legend
        memory.barh(places, sizes, 0.6, left=starts, label=part if max(sizes) * 200 > largest else None)
        starts = [start + size for start, size in zip(starts, sizes, strict=True)]
    for place, (_, program) in zip(places, rows, strict=True):
        capacity = program.memory.capacity / GIB
        memory.plot([capacity] * 2, [place - 0.42, place + 0.42], color="black", linewidth=2, label="capacity" if place == 0 else None)
    memory.set(xlabel="memory per chip, GiB", yticks=places, yticklabels=names)

    height = 0.8 / len(BOUNDS)
    for number, name in enumerate(BOUNDS):
        seconds = [getattr(program.roofline, name) if program.roofline else 0.0 for _, program in rows]
        at = [place + (number - (len(BOUNDS) - 1) / 2) * height for place in places]
        times.barh(at, [1e3 * t for t in seconds], height, label=LABELS[name] if any(seconds) else None)
    for place, (_, program) in zip(places, rows, strict=True):
        note = f" MFU ≤ {program.roofline.mfu:.0%}" if program.roofline else " does not fit"
        times.text(program.roofline.seconds * 1e3 if program.roofline else 0.0, place, note, va="center", fontsize=9)
    times.set(xlabel="time at best, ms")
    times.margins(x=0.25)
    for axes in (memory, times):
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
    times.tick_params(axis="y", length=0)
    for axes, side in ((memory, "left"), (times, "right")):
        outside: Any = f"outside lower {side}"
        figure.legend(*axes.get_legend_handles_labels(), loc=outside, ncols=4, frameon=False, fontsize=9)
    memory.invert_yaxis()
    figure.suptitle(rows[0][0].title if alone else "Plans")
    with replacing(path) as aside:
        figure.savefig(aside, format=path.suffix.lstrip(".") or "png", dpi=120)
