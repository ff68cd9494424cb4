"""`unipixel-jax eval`: predictions for a benchmark, their scores, and a report of all scores."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unipixel_jax.arguments import CommandParser, add_attention, add_loading, positive, positive_or_all
from unipixel_jax.errors import UserError, needing
from unipixel_jax.infer.from_arguments import model_of

if TYPE_CHECKING:
    from unipixel_jax.eval.benchmarks import Benchmark
    from unipixel_jax.eval.predict import Place
    from unipixel_jax.eval.samples import Sample
    from unipixel_jax.eval.scores import Scores
    from unipixel_jax.infer.predictor import UniPixel


ALL = "all"


def configure(parser: argparse.ArgumentParser) -> None:
    """Fill the parser of ``eval``."""
    from unipixel_jax.eval.benchmarks import BENCHMARKS

    parser.description = "Run a benchmark, score predictions, or report scores beside the published ones (docs/evaluation.md)."
    commands = parser.add_subparsers(required=True, dest="benchmark", metavar="BENCHMARK", parser_class=CommandParser)
    for benchmark in BENCHMARKS.values():
        commands.add_parser(benchmark.name, help=f"run {benchmark.title} ({', '.join(benchmark.splits)})", configure="unipixel_jax.eval.cli:configure_run")
    commands.add_parser(ALL, help="run all of them, on all their splits", configure="unipixel_jax.eval.cli:configure_run")
    commands.add_parser("score", help="score predictions, made here or by the torch reference", configure="unipixel_jax.eval.cli:configure_score")
    commands.add_parser("report", help="put scores beside the published ones", configure="unipixel_jax.eval.cli:configure_report")
    commands.add_parser("shapes", help="measure on drawn shapes, which the small model knows", configure="unipixel_jax.synthetic.cli:configure")


def configure_run(parser: argparse.ArgumentParser) -> None:
    """Fill the parser that runs a benchmark."""
    from unipixel_jax.eval.benchmarks import PROMPT_TYPES

    parser.description = "Run a model on a benchmark: write its predictions in the reference's layout, and score them. A run that was stopped goes on."
    add_loading(parser)
    parser.add_argument("--data", type=Path, required=True, metavar="ROOT", help="the folder that holds all data sets (the reference's data/)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder for predictions and results")
    parser.add_argument("--split", help="the split (default: the benchmark's first)")
    parser.add_argument("--single-frame", action="store_true", help="VideoRefer-Bench: mark the objects on one frame only")
    parser.add_argument("--prompt-type", choices=PROMPT_TYPES, default=PROMPT_TYPES[0], help="PixelQA: how objects are pointed at (default: point)")
    consistent = "videos: let SAM see only the frames that the language model sees, as in training, and say what changes: track, or frame by frame"
    parser.add_argument("--consistent", choices=("track", "frame"), help=consistent)
    parser.add_argument("--limit", type=positive, metavar="N", help="run the first N samples only")
    parser.add_argument("--sample-frames", type=positive, default=16, metavar="N", help="frames of a clip that the language model looks at (default: 16)")
    parser.add_argument("--shard", metavar="I/N", help="run every Nth sample from the Ith on, counted from 0 (default: what Slurm or the TPU pod says)")
    parser.add_argument("--rows", type=positive, metavar="N", help="answers that are generated together on a device (default: 16)")
    parser.add_argument("--devices", type=positive_or_all, metavar="N|all", help="devices that take samples (default: all of this machine)")
    parser.add_argument("--workers", type=positive, default=os.cpu_count() or 1, metavar="N", help="processes that score (default: one for each core)")
    add_judge(parser)
    add_attention(parser)
    parser.set_defaults(run=partial(_with_extra, _run))


def add_judge(parser: argparse.ArgumentParser) -> None:
    """Add the options of the model that marks VideoRefer-Bench-D's descriptions."""
    parser.add_argument("--judge-url", metavar="URL", help="VideoRefer-Bench-D: an OpenAI-compatible address, such as http://127.0.0.1:8000/v1")
    parser.add_argument("--judge-model", default="gpt-4o-mini", metavar="NAME", help="the model that marks (default: gpt-4o-mini, as the reference's)")
    parser.add_argument("--judge-prompt", type=Path, metavar="FILE", help="the judge's instruction (default: our own words)")


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
    parser.add_argument("--shown", type=positive, metavar="N", help="videos: score N frames of each only, spread evenly, as the language model sees them")
    add_judge(parser)
    parser.set_defaults(run=partial(_with_extra, _score))


def configure_report(parser: argparse.ArgumentParser) -> None:
    """Fill the parser of ``eval report``."""
    parser.description = "Print the scores of runs beside the published ones, and write them as Markdown, a plot and a page with the worst cases."
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="folders of --out, or of a benchmark's results")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write report.md, report.png and report.html")
    parser.set_defaults(run=partial(_with_extra, _report))


def _with_extra(run: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """Run a command; a package that is missing is one of the extra."""
    with needing("eval", "`unipixel-jax eval`"):
        return run(args)


def print_scores(scores: Mapping[str, Any]) -> None:
    """Print a table of scores by name, those of groups with the group's name before them."""
    for name, value in _flat(scores):
        print(f"{name:40} {'-' if value is None else value if isinstance(value, int) else f'{value:.4f}'}")


def print_summary(found: Scores) -> None:
    """Print scores, corrected ones where there are any, and how many samples failed."""
    print_scores(found.scores)
    if found.failures:
        first = found.failures[0]
        print(f"{len(found.failures)} of {len(found.per_sample)} samples failed, such as {first['sample']}: {first['reason']}")
    if found.corrected is not None:
        print("corrected:")
        print_scores(found.corrected)
    for sentence in found.why:
        print(sentence)


def _score(args: argparse.Namespace) -> int:
    from unipixel_jax.core.files import writable
    from unipixel_jax.eval.benchmarks import find_benchmark

    benchmark = find_benchmark(args.name)
    split = benchmark.split_of(args.split)
    if args.json is not None:
        writable(args.json)
    _check_data(args.data)
    found = _scored(args, benchmark, split, args.predictions, args.predictions.parent / f"{args.predictions.name}_results", args.shown)
    print_summary(found)
    if args.json is not None:
        found.save_json(args.json)
    return 0


def _check_data(root: Path | None) -> None:
    if root is not None and not root.is_dir():
        raise UserError(f"the data root {root} is not a folder: give the folder that holds the data sets")


def _scored(
    args: argparse.Namespace,
    benchmark: Benchmark,
    split: str,
    predictions: Path,
    notes: Path,
    shown: int | None = None,
    names: Collection[str] | None = None,
) -> Scores:
    """The scores of predictions, see ``scoring.score``; a judge's answers are kept in the folder of notes."""
    from unipixel_jax.eval.scoring import score

    if benchmark.name != "videorefer_d":
        return score(benchmark, split, args.data, predictions, args.workers, shown, names)
    from unipixel_jax.eval.descriptions import score_marks

    if args.judge_url is None:
        raise UserError("VideoRefer-Bench-D is marked by another model: give --judge-url with an OpenAI-compatible address, and its key in OPENAI_API_KEY")
    return score_marks(split, predictions, notes, args.judge_url, args.judge_model, args.judge_prompt)


def _run(args: argparse.Namespace) -> int:
    from unipixel_jax.core.cache import prepare_to_compile
    from unipixel_jax.eval.benchmarks import BENCHMARKS
    from unipixel_jax.infer.batch_cli import share_of

    _check_data(args.data)
    prepare_to_compile()
    if args.benchmark != ALL:
        benchmark = BENCHMARKS[args.benchmark]
        plans = [(benchmark, benchmark.split_of(args.split), args.single_frame, args.prompt_type)]
    elif args.split is not None:
        raise UserError(f"--split is {args.split!r}, and all splits are run: leave it out, or name a benchmark")
    else:
        plans = list(_every_run())
    with ExitStack() as stack:
        share = share_of(args.shard, stack, "--shard")
        model = None
        skipped = []
        for benchmark, split, single_frame, prompt_type in plans:
            title = benchmark.folder_of(split, single_frame, prompt_type)
            print(f"{benchmark.title} ({title})")
            try:
                model = _run_one(args, model, benchmark, split, single_frame, prompt_type, share)
            except UserError as error:
                if args.benchmark != ALL:
                    raise
                print(f"skipped: {error}", file=sys.stderr)
                skipped.append(title)
    if skipped:
        print(f"error: {len(skipped)} of {len(plans)} runs were skipped: {', '.join(skipped)}", file=sys.stderr)
    return int(bool(skipped))


def _every_run() -> Iterator[tuple[Benchmark, str, bool, str]]:
    """All benchmarks with all their splits and ways of marking, as the reference's scripts/auto_eval.sh runs them."""
    from unipixel_jax.eval.benchmarks import BENCHMARKS, PROMPT_TYPES

    for benchmark in BENCHMARKS.values():
        for split in benchmark.splits:
            for single_frame in (True, False) if "{single}" in benchmark.folder else (False,):
                for prompt_type in PROMPT_TYPES if "{prompt}" in benchmark.folder else PROMPT_TYPES[:1]:
                    yield benchmark, split, single_frame, prompt_type


def _run_one(
    args: argparse.Namespace, model: UniPixel | None, benchmark: Benchmark, split: str, single_frame: bool, prompt_type: str, share: tuple[int, int]
) -> UniPixel:
    """Run one benchmark, and return the model, which is loaded if it was not before."""
    import jax
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from unipixel_jax.eval import predict
    from unipixel_jax.eval.journal import Journal
    from unipixel_jax.eval.provenance import identity
    from unipixel_jax.eval.samples import Settings
    from unipixel_jax.eval.scoring import VIDEO_SCORERS
    from unipixel_jax.infer.job_source import Options
    from unipixel_jax.infer.many import ROWS

    if args.consistent and benchmark.name not in VIDEO_SCORERS:
        raise UserError(f"--consistent is for clips whose masks are scored ({', '.join(VIDEO_SCORERS)}), not for {benchmark.title}")
    devices = jax.local_devices()
    if args.devices is not None and args.devices > len(devices):
        raise UserError(f"--devices is {args.devices}, and this machine has {len(devices)}")
    folder = benchmark.folder_of(split, single_frame, prompt_type)
    place = predict.Place.below(args.out, f"{folder}_{args.consistent}" if args.consistent else folder)
    model = model or _load(args)
    settings = Settings(args.sample_frames, single_frame, prompt_type, model.config.sam2.image_size, args.consistent or "")
    samples = predict.list_samples(benchmark, split, args.data, place, settings, args.limit)
    header = identity(benchmark, split, settings, model, len(samples))
    own = samples[share[0] :: share[1]]
    waits: list[float] = []
    options = Options(args.rows or ROWS, predict.MAX_NEW_TOKENS, upright=False, note_wait=waits.append)
    journal = Journal(place.journal(share), header)
    before = len(journal.done)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    start = time.perf_counter()
    with journal, Progress(*columns, disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task(benchmark.title, total=len(own), completed=before)
        predict.run(model, own, journal, options, devices[: args.devices], lambda: bar.advance(task))
    seconds = time.perf_counter() - start
    failures = predict.finish(benchmark, own, place, share)
    new = len(own) - before
    print(f"{new} samples in {seconds:.1f} s, {before} were there; the device waited for media {sum(waits):.1f} s; {len(failures)} failed: {place.predictions}")
    if predict.all_done(place, share, header):
        _conclude(args, model, benchmark, split, place, header, samples, {"seconds": seconds, "samples": new, "waited_for_media": sum(waits)})
    else:
        print(f"shard {share[0]} of {share[1]} is done; the last one to end scores all")
    return model


def _load(args: argparse.Namespace) -> UniPixel:
    model = model_of(args)
    if args.consistent is None:
        return model
    config = replace(model.config, sam2_batch_mode=args.consistent == "frame")
    return replace(model, loaded=replace(model.loaded, config=config))


def _conclude(
    args: argparse.Namespace,
    model: UniPixel,
    benchmark: Benchmark,
    split: str,
    place: Place,
    header: Mapping[str, Any],
    samples: Sequence[Sample],
    run: Mapping[str, Any],
) -> None:
    """Score a run that is complete, and write its results; of a split without public truth, write what its server takes."""
    from unipixel_jax.core.files import replacing
    from unipixel_jax.eval import predict
    from unipixel_jax.eval.provenance import describe

    results = {**header, **describe(model, str(args.model or "embedded")), "limit": args.limit, "words": predict.words_of(samples), "run": run}
    results |= {"data": str(args.data.absolute()), "predictions": str(place.predictions.absolute())}
    if benchmark.scored is not None and split not in benchmark.scored:
        path = predict.write_submission(benchmark, place)
        print(f"the truth of this split is not public: upload {path}")
        results |= {"scores": None, "submission": str(path)}
    elif benchmark.name == "videorefer_d" and args.judge_url is None:
        print(f"give --judge-url, or: unipixel-jax eval score {benchmark.name} --predictions {place.predictions} --judge-url URL")
        results |= {"scores": None}
    else:
        names = {sample.name for sample in samples}
        shown = args.sample_frames if args.consistent else None
        found = _scored(args, benchmark, split, place.predictions, place.notes, shown, names)
        print_summary(found)
        results |= found.to_json()
        if args.consistent:
            results["inconsistent"] = _compare(args, benchmark, split, found, names)
    with replacing(place.notes / "results.json") as aside:
        aside.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _compare(args: argparse.Namespace, benchmark: Benchmark, split: str, found: Scores, names: Collection[str]) -> dict[str, Any] | None:
    """Print the scores, on the same frames, of the ordinary run in the same folder, and what changed; returns them, or None where there is no such run."""
    predictions = args.out / benchmark.folder_of(split)
    if not predictions.is_dir():
        print(f"run the same without --consistent to compare with ({predictions} does not exist)")
        return None
    other = _scored(args, benchmark, split, predictions, predictions, args.sample_frames, names)
    print("the ordinary run on the same frames, and the change:")
    before = dict(_flat(other.scores))
    for name, value in _flat(found.scores):
        if value is not None and before[name] is not None:
            print(f"{name:40} {before[name]:.4f} {value - before[name]:+.4f}")
    return other.to_json()


def _report(args: argparse.Namespace) -> int:
    from unipixel_jax.eval.report import find_results, print_table, write_report

    results = find_results(args.folders)
    print_table(results)
    if args.out is not None:
        for path in write_report(results, args.out):
            print(path)
    return 0


def _flat(scores: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in scores.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name} ")
        else:
            yield before + name, value
