"""``unipixel-jax plan``: whether a run fits a topology, and what it costs there, before any chip is rented."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unipixel_jax.arguments import positive
from unipixel_jax.errors import UserError, needing

if TYPE_CHECKING:
    from rich.console import Console

    from unipixel_jax.config import UniPixelConfig
    from unipixel_jax.plan.report import PlanReport
    from unipixel_jax.train.config import TrainConfig

NEAR = 0.95
"""The share of a chip's memory above which a plan compiled with least effort is reported as doubtful: a run's program needed 0.35 GiB of 15.75 more than
such a plan said (docs/plan.md)."""
EPILOG = """After CONFIG and the options, any field of the configuration can be given another value, as with `unipixel-jax train`: --batch-size 32
--mesh.preset fsdp_tp --mesh.tensor 2 --remat full. The programs are compiled on this machine, by the topology's own compiler, and are not run: all times are
roofline times."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Fill the parser of ``plan``. Its exit status is 1 where a program does not fit, or the run is refused for a topology."""
    parser.description, parser.epilog = "Say whether a run fits a topology, and what it costs there.", EPILOG
    parser.allow_abbrev = False  # an abbreviated option could be meant as a field of the configuration
    parser.add_argument("config", type=Path, metavar="CONFIG", help="a Python file like those in configs/")
    parser.add_argument("--topology", action="append", required=True, metavar="NAME", help="v5e:8x8, v5p-16, 2*v5e:4x4, h100:8, ...; may be repeated")
    programs = "some of gradients, update, prefill, decode and track (default: all of these), or 'language part'"
    parser.add_argument("--programs", nargs="+", metavar="NAME", help=programs)
    parser.add_argument("--model", metavar="SIZE", help="3b or 7b, or a converted directory (default: what the configuration says)")
    weights = "int8 or int4: quantised weights for prefill, decode and track (default: full weights, or those of the converted directory)"
    parser.add_argument("--weights", metavar="DTYPE", help=weights)
    parser.add_argument("--frames", type=int, default=8, metavar="N", help="frames of every clip (default: 8)")
    parser.add_argument("--tokens", type=int, default=2048, metavar="N", help="tokens of every conversation, the clip's included (default: 2048)")
    parser.add_argument("--objects", type=int, default=5, metavar="N", help="objects of every clip (default: 5)")
    together = "answers that each copy of the weights generates together, of inference; several to plan each (default: 1)"
    parser.add_argument("--prompts", type=positive, nargs="+", default=[1], metavar="N", help=together)
    sharing = "chips that share a copy of the weights for inference (default: the fewest that hold it, as inference does)"
    parser.add_argument("--tensor", type=positive, metavar="N", help=sharing)
    parser.add_argument("--fit", action="store_true", help="search mesh, batch size and remat policy for the fastest plan that fits, 12 compilations at most")
    parser.add_argument("--full-effort", action="store_true", help="compile for TPUs as a run does: more accurate memory and traffic, in eight times the time")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures as JSON")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the figures as a Markdown table")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw memory and times as an image")
    parser.set_defaults(run=_run, fields=[])


def _run(args: argparse.Namespace) -> int:
    with needing("train,tpu", "planning"):
        return run(args)


def run(args: argparse.Namespace) -> int:
    """Plan as the arguments say, and return the exit status.

    Raises:
        UserError: a topology or a program is unknown, or ``load_config`` or ``sizes`` refuses the configuration.
    """
    from rich.console import Console

    from unipixel_jax.core.files import writable
    from unipixel_jax.core.quantisation import Quantisation
    from unipixel_jax.models.quantised import quantised_config
    from unipixel_jax.plan.advice import advice
    from unipixel_jax.plan.fit import fit
    from unipixel_jax.plan.plan import DEFAULT_PROGRAMS, check_programs, make_plan
    from unipixel_jax.plan.programs import Workload
    from unipixel_jax.plan.topology import open_topology
    from unipixel_jax.train.config import load_config

    for path in (args.json, args.markdown, args.plot):
        if path is not None:
            writable(path)
    programs = args.programs or DEFAULT_PROGRAMS
    check_programs(programs)
    config = load_config(args.config, args.fields)
    how = None if args.weights is None else Quantisation.of(args.weights)
    model_config = quantised_config(sizes(args.model, config), how, args.model)
    workload = Workload(args.frames, args.tokens, args.objects)
    topologies = [open_topology(name) for name in args.topology]
    console = Console(width=None if sys.stdout.isatty() else 160)
    reports, fits = [], True

    def tell(report: PlanReport) -> None:
        memory = report.programs[0].memory
        console.print(f"tried {report.title}: {memory.total / 2**30:.2f} GiB of {memory.capacity / 2**30:.2f}")

    for topology in topologies:
        try:
            own = fit(config, model_config, topology, workload, tell) if args.fit else config
            made = [
                make_plan(own, model_config, topology, workload, some, prompts, args.full_effort, args.tensor)
                for some, prompts in zip(_each(programs, len(args.prompts)), args.prompts, strict=True)
                if some
            ]
        except UserError as error:
            fits = False
            print(f"{topology.name}: {error}", file=sys.stderr)
            continue
        reports += made
        for report in made:
            _show(console, report)
            for line in advice(report, own, model_config, topology):
                fits = False
                print(f"{topology.name}: {line}", file=sys.stderr)
    if not reports:
        return 1
    _write(args, reports)
    return 0 if fits else 1


def _each(programs: Sequence[str], numbers: int) -> list[list[str]]:
    """Return the programs to plan for each of some numbers of answers: all for the first, and those that depend on the number for the others."""
    from unipixel_jax.plan.serving import DECODE, PREFILL

    return [list(programs), *[[name for name in programs if name in (PREFILL, DECODE)]] * (numbers - 1)]


def _show(console: Console, report: PlanReport) -> None:
    """Print a report: the table, and what fills a chip or moves most of its memory's traffic."""
    console.print(report.table())
    for program in report.programs:
        filled = program.memory.total / program.memory.capacity
        if NEAR < filled <= 1 and not report.full_effort:
            console.print(f"{program.name} fills {filled:.0%}: a run's program needs a little more; see --full-effort")
    for line in report.moving():
        console.print(line, highlight=False, soft_wrap=True)


def _write(args: argparse.Namespace, reports: list[PlanReport]) -> None:
    """Write the files that the arguments ask for."""
    from unipixel_jax.core.files import replacing
    from unipixel_jax.plan.report import MARKDOWN, plot

    if args.json is not None:
        with replacing(args.json) as aside:
            aside.write_text(json.dumps([report.to_json() for report in reports], indent=1) + "\n", encoding="utf-8")
    if args.markdown is not None:
        with replacing(args.markdown) as aside:
            aside.write_text("\n".join([MARKDOWN, *(report.markdown_rows() for report in reports)]) + "\n", encoding="utf-8")
    if args.plot is not None:
        plot(reports, args.plot)


def sizes(model: str | None, config: TrainConfig) -> UniPixelConfig:
    """Return the sizes of the model that a run trains.

    Args:
        model: a preset's name or a converted directory; None for what the run starts from.
        config: the run's configuration.

    Raises:
        UserError: no directory or preset of that name is here.
    """
    from unipixel_jax.config import PRESETS, UniPixelConfig

    start = config.start
    if model is None and start.model is not None:
        return start.model
    name = model or (start.checkpoint if start.checkpoint and Path(start.checkpoint).is_dir() else start.size)
    if name is not None and name in PRESETS:
        return PRESETS[name]
    if name is None or not (Path(name) / "config.json").is_file():
        raise UserError(f"{name or start.checkpoint} is not here, and no size is known: give --model {' or '.join(PRESETS)}, or a converted directory")
    return UniPixelConfig.from_directory(Path(name))
