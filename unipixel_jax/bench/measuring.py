"""The commands of `unipixel-jax bench`: they measure, and print a table."""

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
from unipixel_jax.errors import UserError, needing
from unipixel_jax.ops.attention import BACKENDS

Report = dict[str, dict[str, float]]
"""Figures as {name: {"min", "median", "max"}} in seconds per item, in the form that scripts/benchmark_reference.py prints."""


def configure_models(parser: argparse.ArgumentParser) -> None:
    """Fill the parser of ``bench models``."""
    parser.add_argument("--parts", nargs="+", choices=tuple(PARTS), default=list(PARTS))
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    parser.add_argument("--image-size", type=positive, default=768, help="side of SAM 2's square frames, in pixels")
    parser.add_argument("--frames", type=positive, default=10, help="frames of the clip")
    parser.add_argument("--objects", type=positive, default=5, help="objects tracked together through the clip")
    parser.add_argument("--layers", type=positive, default=4, help="layers of the language model (UniPixel-3B has 36)")
    parser.add_argument("--prompt-tokens", type=positive, default=512)
    parser.add_argument("--new-tokens", type=positive, default=8)
    parser.add_argument("--against", type=Path, metavar="FILE", help="what scripts/benchmark_reference.py printed here; the table then shows ours / theirs")
    parser.set_defaults(run=_run, measure=_models)
    _add_repeats(parser)
    _add_output(parser)


def configure_attention(parser: argparse.ArgumentParser) -> None:
    """Fill the parser of ``bench attention``."""
    parser.add_argument("--work", nargs="+", choices=tuple(attention.WORKS), default=list(attention.WORKS), metavar="NAME", help="; ".join(attention.WORKS))
    parser.add_argument("--backends", nargs="+", choices=tuple(BACKENDS), default=list(BACKENDS))
    parser.add_argument("--chip", choices=("cpu", *CHIPS), default="cpu", help="the chip to run on, or to compile for if it is not here")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--backward", action="store_true", help="compute the gradients too")
    parser.add_argument("--least-effort", action="store_true", help="compile for TPUs with the compiler's least effort, as plans do")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw times and memory as an image")
    parser.set_defaults(run=_run, measure=_attention)
    _add_repeats(parser)
    _add_output(parser)


def configure_train(parser: argparse.ArgumentParser) -> None:
    """Fill the parser of ``bench train``."""
    parser.description = "Train for a while in a temporary directory. Fields of the configuration follow as with unipixel-jax train."
    parser.add_argument("config", metavar="CONFIG", help="a Python file like those in configs/")
    parser.add_argument("--steps-per-part", type=positive, default=10, help="steps between two lines of the log")
    parser.add_argument("--parts", type=positive, default=3, help="parts that are measured with saving, and without")
    parser.set_defaults(run=_run, measure=_training, fields=[])
    _add_output(parser)


def configure_step(parser: argparse.ArgumentParser) -> None:
    """Fill the parser of ``bench step``."""
    parser.description = "Time the gradients of a batch and the update, as unipixel-jax plan foretells them. Fields of the configuration follow as there."
    parser.add_argument("config", metavar="CONFIG", help="a Python file like those in configs/")
    parser.add_argument("--model", metavar="SIZE", help="3b, 7b or tiny, or a converted directory (default: what the configuration says)")
    for name, default in (("frames", 8), ("tokens", 2048), ("objects", 5)):
        parser.add_argument(f"--{name}", type=positive, default=default, help=f"{name} of every sample (default: {default})")
    parser.set_defaults(run=_run, measure=_step, fields=[])
    _add_repeats(parser)
    _add_output(parser)


def _add_repeats(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=positive, default=2, help="timed runs of each measurement")


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help='write the figures as JSON; "-" for standard output')


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


def _training(args: argparse.Namespace) -> tuple[Table, dict[str, float]]:
    with needing("train", "training"):
        from unipixel_jax.bench.training import measure
        from unipixel_jax.train.config import load_config
    costs = measure(load_config(args.config, args.fields), args.steps_per_part, args.parts)
    table = Table("samples/s", "while a checkpoint is written", "share", "waiting for data", "kept by saving", title=f"on {jax.devices()[0]}")
    rates = f"{costs.samples_per_second:.2f}", f"{costs.samples_per_second_saving:.2f}"
    table.add_row(*rates, *(f"{share:.1%}" for share in (costs.overlapped, costs.host_wait, costs.save_wait)))
    return table, costs.to_json()


def _step(args: argparse.Namespace) -> tuple[Table, dict[str, Any]]:
    with needing("train", "training"):
        from unipixel_jax.bench.step import measure
        from unipixel_jax.plan.cli import sizes
        from unipixel_jax.plan.programs import Workload
        from unipixel_jax.train.config import load_config
    config = load_config(args.config, args.fields)
    times = measure(config, sizes(args.model, config), Workload(args.frames, args.tokens, args.objects), args.repeats)
    table = Table("program", "shortest, s", "median, s", "MFU", title=f"{config.name} on {times.devices} x {jax.devices()[0].device_kind}")
    for name, own, share in (("gradients", times.gradients, times.mfu), ("update", times.update, None)):
        table.add_row(name, f"{min(own):.3f}", f"{statistics.median(own):.3f}", "" if share is None else f"{share:.1%}")
    return table, {**dataclasses.asdict(times), "mfu": times.mfu, "batch_size": config.batch_size}


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
