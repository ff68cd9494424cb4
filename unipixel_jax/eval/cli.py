"""`unipixel-jax eval`: predictions for a benchmark, their scores, and a report of all scores."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from unipixel_jax.arguments import CommandParser, positive
from unipixel_jax.errors import UserError


def configure(parser: argparse.ArgumentParser) -> None:
    """Fill the parser of ``eval``."""
    parser.description = "Run a benchmark, score predictions, or report scores beside the published ones (docs/evaluation.md)."
    commands = parser.add_subparsers(required=True, dest="benchmark", metavar="BENCHMARK", parser_class=CommandParser)
    commands.add_parser("score", help="score predictions, made here or by the torch reference", configure="unipixel_jax.eval.cli:configure_score")
    commands.add_parser("shapes", help="drawn shapes, which the small model knows", configure="unipixel_jax.synthetic.cli:configure")


def configure_score(parser: argparse.ArgumentParser) -> None:
    """Fill the parser of ``eval score``."""
    from unipixel_jax.eval.benchmarks import BENCHMARKS

    parser.description = "Score predictions in the reference's layout. No model is needed."
    parser.add_argument("name", metavar="BENCHMARK", help=", ".join(BENCHMARKS))
    parser.add_argument("--data", type=Path, metavar="ROOT", help="the folder that holds all data sets (the reference's data/)")
    parser.add_argument("--predictions", type=Path, required=True, metavar="DIR", help="the folder of this benchmark's predictions")
    parser.add_argument("--split", help="the split (default: the benchmark's first)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the scores, and those of each sample")
    parser.add_argument("--workers", type=positive, default=os.cpu_count() or 1, metavar="N", help="processes (default: one for each core)")
    parser.set_defaults(run=_score)


def print_scores(scores: Mapping[str, Any]) -> None:
    """Print a table of scores by name, those of groups with the group's name before them."""
    for name, value in _flat(scores):
        print(f"{name:40} {'-' if value is None else value if isinstance(value, int) else f'{value:.4f}'}")


def _score(args: argparse.Namespace) -> int:
    from unipixel_jax.core.files import writable
    from unipixel_jax.eval.benchmarks import find_benchmark
    from unipixel_jax.eval.scoring import score

    benchmark = find_benchmark(args.name)
    split = benchmark.split_of(args.split)
    if args.json is not None:
        writable(args.json)
    if args.data is not None and not args.data.is_dir():
        raise UserError(f"the data root {args.data} is not a folder: give the folder that holds the data sets")
    found = score(benchmark, split, args.data, args.predictions, args.workers)
    print_scores(found.scores)
    if found.failures:
        print(f"{len(found.failures)} of {len(found.per_sample)} samples failed, such as {found.failures[0]['sample']}: {found.failures[0]['reason']}")
    if found.corrected is not None:
        print("corrected:")
        print_scores(found.corrected)
    for sentence in found.why:
        print(sentence)
    if args.json is not None:
        found.save_json(args.json)
    return 0


def _flat(scores: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in scores.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name} ")
        else:
            yield before + name, value
