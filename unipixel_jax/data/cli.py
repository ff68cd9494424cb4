"""`unipixel-jax data`: look at training data before training, and pack it into shards."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from unipixel_jax.arguments import positive
from unipixel_jax.errors import UserError, needing

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from unipixel_jax.data.mixture import Mixture

_MODEL = Path(__file__).parent.parent / "assets" / "shapes_tiny"
_SHOWN = 50


def configure(parser: argparse.ArgumentParser) -> None:
    """Fill the parser of ``data``."""
    parser.description = __doc__
    commands = parser.add_subparsers(required=True, metavar="WHAT")
    check = commands.add_parser("check", help="open data sets, count their samples, and draw some or all of them")
    check.add_argument("sources", metavar="SOURCES", help="names and repeats, for example refcoco:10,mevis; a path to your own data; tfds:NAME")
    check.add_argument("--samples", type=positive, default=16, metavar="N", help="samples to draw of each source, spread evenly (default: 16)")
    check.add_argument("--all", action="store_true", help="draw every sample")
    check.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the random numbers with which samples are drawn (default: 0)")
    check.set_defaults(run=_run, work=_check)
    pack = commands.add_parser("pack", help="write data sets with everything they need as ArrayRecord shards, to be read as tfds:packed/NAME")
    pack.add_argument("sources", metavar="SOURCES", help="names, for example refcoco,mevis; a path to your own data")
    pack.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the shards go; training reads them with this folder as its data root")
    for what, kind in (("frames", int), ("words", int), ("seconds", float)):
        for end, most in (("min", "at least"), ("max", "at most")):
            pack.add_argument(f"--{end}-{what}", type=kind, metavar="N", help=f"only samples with {most} N {what}, as data.filters does in training")
    pack.set_defaults(run=_run, work=_pack)
    for command in (check, pack):
        command.add_argument("--root", type=Path, default=Path("data"), metavar="DIR", help="the folder that holds all data sets (default: data)")
        command.add_argument("--split", default="train", help="the split of the data sets to read (default: train)")


def _run(args: argparse.Namespace) -> int:
    with needing("train", "looking at training data"):
        return int(args.work(args))


def _check(args: argparse.Namespace) -> int:
    import numpy as np
    from rich.progress import track

    from unipixel_jax.config import UniPixelConfig
    from unipixel_jax.data.annotation import DrawOptions
    from unipixel_jax.data.loader import FAILURES
    from unipixel_jax.data.pipeline import DrawSample, open_mixture
    from unipixel_jax.data.report import report
    from unipixel_jax.processing.tokenizer import Tokenizer

    console = _console()
    mixture = open_mixture(args.sources, args.root, 1, args.seed, args.split)
    console.print(report(mixture))
    # The embedded model's sizes: whether a sample can be drawn does not depend on the model, and small images are quick.
    config = UniPixelConfig.from_directory(_MODEL)
    draw_sample = DrawSample(Tokenizer.from_directory(_MODEL), config, DrawOptions(image_size=config.sam2.image_size))
    failures: list[tuple[str, str, str]] = []
    drawn: Counter[str] = Counter()
    chosen = _chosen(mixture, None if args.all else args.samples)
    for part, number in track(chosen, "drawing", console=_console(stderr=True), disable=not sys.stderr.isatty()):
        source = mixture.parts[part].source
        drawn[source.name] += 1
        annotation = source[number]
        try:
            draw_sample(annotation, np.random.default_rng([args.seed, number]))
        except FAILURES as error:
            failures.append((source.name, annotation.name, str(error) if isinstance(error, UserError) else repr(error)))
    failed = Counter(source for source, _, _ in failures)
    console.print(_table("source, drawn, failed", [(name, f"{count:,}", f"{failed[name]:,}") for name, count in drawn.items()]))
    _show(console, failures)
    return 1 if failures else 0


def _pack(args: argparse.Namespace) -> int:
    from unipixel_jax.data.mixture import parse
    from unipixel_jax.data.sources import open_source
    from unipixel_jax.data.sources.base import Filters
    from unipixel_jax.data.tfds.builder import pack

    console = _console()
    filters = Filters(**{field.name: getattr(args, field.name) for field in fields(Filters)})
    failures: list[tuple[str, str, str]] = []
    for name, repeat in parse(args.sources).items():
        if repeat > 1:
            raise UserError(f"{name}:{repeat}: samples are packed once; give the repeat when training on them")
        source = open_source(name, args.root, args.split, filters)
        folder = pack(source, args.split, args.out, lambda sample, reason, name=name: failures.append((name, sample, reason)), filters)  # type: ignore[misc]
        console.print(f"{len(source):,} samples of {name} in {folder}", highlight=False, soft_wrap=True)
    _show(console, failures)
    return 1 if failures else 0


def _chosen(mixture: Mixture, count: int | None) -> list[tuple[int, int]]:
    """The numbers of parts and samples to draw."""
    import numpy as np

    out = []
    for number, part in enumerate(mixture.parts):
        wanted = len(part.source) if count is None else min(count, len(part.source))
        out += [(number, int(i)) for i in np.linspace(0, len(part.source) - 1, wanted).round()]
    return out


def _show(console: Console, failures: Sequence[tuple[str, str, str]]) -> None:
    if failures:
        console.print(_table("source, sample, what is wrong", failures[:_SHOWN]))
    if len(failures) > _SHOWN:
        console.print(f"and {len(failures) - _SHOWN} more")


def _table(columns: str, rows: Sequence[Sequence[str]]) -> Table:
    from rich.table import Table

    table = Table(*columns.split(", "))
    for row in rows:
        table.add_row(*row)
    return table


def _console(stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=stderr, width=None if (sys.stderr if stderr else sys.stdout).isatty() else 160)
