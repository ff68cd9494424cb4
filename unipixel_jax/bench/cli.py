"""`unipixel-jax bench`: measure the model's speed on this machine, and print a table."""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from unipixel_jax.arguments import positive
from unipixel_jax.bench import attention
from unipixel_jax.bench.workloads import PARTS, Sizes
from unipixel_jax.core.accelerators import CHIPS
from unipixel_jax.core.files import replacing, writable
from unipixel_jax.errors import UserError
from unipixel_jax.ops.attention import BACKENDS

Report = dict[str, dict[str, float]]
"""Figures as {name: {"min", "median", "max"}} in seconds per item, in the form that scripts/benchmark_reference.py prints."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Fill the parser of ``bench``."""
    parser.description = __doc__
    commands = parser.add_subparsers(required=True, metavar="WHAT")
    models = commands.add_parser("models", help="SAM 2 and the language model, in comparison with the torch reference")
    models.add_argument("--parts", nargs="+", choices=tuple(PARTS), default=list(PARTS))
    models.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    models.add_argument("--image-size", type=positive, default=768, help="side of SAM 2's square frames, in pixels")
    models.add_argument("--frames", type=positive, default=10, help="frames of the clip")
    models.add_argument("--objects", type=positive, default=5, help="objects tracked together through the clip")
    models.add_argument("--layers", type=positive, default=4, help="layers of the language model (UniPixel-3B has 36)")
    models.add_argument("--prompt-tokens", type=positive, default=512)
    models.add_argument("--new-tokens", type=positive, default=8)
    models.add_argument("--against", type=Path, metavar="FILE", help="what scripts/benchmark_reference.py printed here; the table then shows ours / theirs")
    models.set_defaults(run=_run, measure=_models)

    kernels = commands.add_parser("attention", help="every attention backend, at the shapes that the models use")
    kernels.add_argument("--work", nargs="+", choices=tuple(attention.WORKS), default=list(attention.WORKS), metavar="NAME", help="; ".join(attention.WORKS))
    kernels.add_argument("--backends", nargs="+", choices=tuple(BACKENDS), default=list(BACKENDS))
    kernels.add_argument("--chip", choices=("cpu", *CHIPS), default="cpu", help="the chip to run on, or to compile for if it is not here")
    kernels.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    kernels.add_argument("--backward", action="store_true", help="compute the gradients too")
    kernels.add_argument("--least-effort", action="store_true", help="compile for TPUs with the compiler's least effort, as plans do")
    kernels.add_argument("--plot", type=Path, metavar="FILE.png", help="draw times and memory as an image")
    kernels.set_defaults(run=_run, measure=_attention)

    for command in (models, kernels):
        command.add_argument("--repeats", type=positive, default=2, help="timed runs of each measurement")
        command.add_argument("--json", type=Path, metavar="FILE", help='write the figures as JSON; "-" for standard output')


def _run(args: argparse.Namespace) -> int:
    if args.json is not None and str(args.json) != "-":
        writable(args.json)
    table, report = args.measure(args)
    shown = args.json is not None and str(args.json) == "-"
    Console(stderr=shown, width=None if sys.stdout.isatty() else 160).print(table)
    if args.json is not None:
        _write(args.json, report)
    return 0


def _models(args: argparse.Namespace) -> tuple[Table, Report]:
    theirs = _read(args.against) if args.against else {}
    report = _measure(args)
    return _table(report, theirs), report


def _attention(args: argparse.Namespace) -> tuple[Table, list[dict[str, object]]]:
    results = []
    for result in attention.measure(args.work, args.backends, args.chip, jnp.dtype(args.dtype), args.backward, args.repeats, not args.least_effort):
        print(f"{result.work:24} {result.backend}", file=sys.stderr, flush=True)
        results.append(result)
    passes = "forward and backward" if args.backward else "forward"
    columns = ("work", "backend", "time, ms", "temporary, MB", "moved, MB", "GFLOP", "roofline, ms", "of roofline", "refused")
    table = Table(*columns, title=f"{args.dtype}, {passes}, on {args.chip}")
    for r in results:
        measured = (r.seconds, 1e3, ",.1f"), (r.temporary, 1e-6, ",.1f"), (r.moved, 1e-6, ",.0f")
        figures = (*measured, (r.flops, 1e-9, ",.1f"), (r.roofline, 1e3, ".3f"), (r.efficiency, 1, ".0%"))
        table.add_row(r.work, r.backend, *("" if value is None else format(value * unit, form) for value, unit, form in figures), r.refused)
    if args.plot is not None:
        attention.plot(results, args.plot)
    return table, [{**dataclasses.asdict(r), "efficiency": r.efficiency} for r in results]


def _measure(args: argparse.Namespace) -> Report:
    sizes = Sizes(args.image_size, args.frames, args.objects, args.layers, args.prompt_tokens, args.new_tokens, args.repeats)
    report: Report = {}
    for dtype in args.dtypes:
        for part in args.parts:
            for name, times in PARTS[part](sizes, jnp.dtype(dtype)):
                report[name] = {"min": min(times), "median": statistics.median(times), "max": max(times)}
                print(f"{name:60} {min(times):9.3f} s", file=sys.stderr, flush=True)
            # the next part uses none of these programs, and some hold the weights that they were traced with
            jax.clear_caches()
    return report


def _table(report: Report, theirs: Mapping[str, Mapping[str, float]]) -> Table:
    table = Table("measurement", *("shortest, s", "median, s"), *(("reference, s", "ours / theirs") if theirs else ()), title=f"on {jax.devices()[0]}")
    for name, ours in report.items():
        row = [name, f"{ours['min']:.3f}", f"{ours['median']:.3f}"]
        if theirs:
            row += [f"{theirs[name]['min']:.3f}", f"{ours['min'] / theirs[name]['min']:.2f}"] if name in theirs else ["not measured", ""]
        table.add_row(*row)
    return table


def _read(path: Path) -> Report:
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        return {name: {"min": float(entry["min"])} for name, entry in report.items()}
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: make it with scripts/benchmark_reference.py --reference CLONE > {path}") from None
    except (ValueError, AttributeError, KeyError, TypeError):
        raise UserError(f"{path} is not what scripts/benchmark_reference.py prints, expected {{name: {{min, median, max}}}}") from None


def _write(path: Path, report: Any) -> None:
    text = json.dumps(report, indent=1) + "\n"
    if str(path) == "-":
        print(text, end="")
        return
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")
