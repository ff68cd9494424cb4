"""`unipixel-jax segment` for many photos and clips: the list of jobs, or a folder and a file of prompts, to files of results."""

from __future__ import annotations

import argparse
import re
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from unipixel_jax.arguments import positive, positive_or_all
from unipixel_jax.errors import UserError
from unipixel_jax.infer.from_arguments import model_of

if TYPE_CHECKING:
    from unipixel_jax.infer.exports import Export
    from unipixel_jax.infer.job_source import Job


def configure_many(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``run_many`` to the parser of ``segment``, which has ``media``, ``prompt`` and the options of inference."""
    many = parser.add_argument_group("many photos and clips", "MEDIA is then a list of jobs in JSON Lines, or a folder of photos and videos (docs/batches.md)")
    many.add_argument("--out", type=Path, metavar="DIR", help="answer all jobs, and add a line for each to DIR/results.jsonl or DIR/failures.jsonl")
    many.add_argument("--prompts", type=Path, metavar="FILE", help="with a folder: ask the prompt in each line about every file")
    many.add_argument("--rows", type=positive, metavar="N", help="answers that are generated together on a device (default: 16)")
    devices = "devices that take jobs, each with a copy of the weights, or as many together as share one (default: all of this machine)"
    many.add_argument("--devices", type=positive_or_all, metavar="N|all", help=devices)
    many.add_argument("--host", metavar="I/N", help="take every Nth job from the Ith on, counted from 0 (default: what Slurm or the TPU pod says)")


def run_many(args: argparse.Namespace) -> int:
    """Run the jobs; returns 0, or 1 where a job failed."""
    jobs = _read(args)
    with ExitStack() as stack:
        share = share_of(args.host, stack)
        return _run(args, jobs, share, _exports(args, share))


def _exports(args: argparse.Namespace, share: tuple[int, int]) -> list[Export]:
    """The folders in the formats of other tools, inside that of the results."""
    from unipixel_jax.infer.exports import EXPORTS

    if unknown := [name for name in args.format if name not in EXPORTS]:
        raise UserError(f"--format {unknown[0]} is of one clip's overlay, and --out for many: expected some of {', '.join(EXPORTS)}")
    if args.format and share[1] > 1:
        raise UserError(f"--format exports all results, and {share[1]} hosts share the jobs: give it with --resume on one host when all have ended")
    return [EXPORTS[name](args.out / name, resume=args.resume) for name in dict.fromkeys(args.format)]


def _read(args: argparse.Namespace) -> list[Job]:
    """Read the jobs; whatever is wrong with them is found out before a model is loaded."""
    from unipixel_jax.infer.jobs import read_list, read_product
    from unipixel_jax.processing.prompts import require_words

    path = Path(args.media)
    if args.max_new_tokens < 1 or args.sample_frames < 1:
        raise UserError(f"--max-new-tokens is {args.max_new_tokens} and --sample-frames {args.sample_frames}, expected at least 1")
    if args.prompt is not None:
        require_words(args.prompt)
        raise UserError(f"the prompt {args.prompt!r} is given with --out: write it into the list, or into the file of --prompts")
    if path.is_dir():
        if args.prompts is None:
            raise UserError(f"{path} is a folder: give --prompts FILE with a prompt in each line, or a list of jobs in its place")
        return read_product(path, args.prompts, args.sample_frames)
    if args.prompts is not None:
        raise UserError(f"--prompts goes with a folder, and {path} is none: write the prompts into the list")
    return read_list(path, args.sample_frames)


def share_of(text: str | None, stack: ExitStack, option: str = "--host") -> tuple[int, int]:
    """The number of this process and the number of all that share the jobs.

    Args:
        text: "I/N" as the user gave it; None for what Slurm or the TPU pod says.
        stack: closes the connection of the hosts.
        option: the option's name, for messages.

    Raises:
        UserError: the text is something else.
    """
    if text is None:
        import jax

        from unipixel_jax.core.distributed import HostsConfig, connected

        stack.enter_context(connected(HostsConfig()))
        return jax.process_index(), jax.process_count()
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if found is None or int(found[1]) >= int(found[2]):
        raise UserError(f"{option} is {text!r}, expected I/N with I from 0 to N - 1, for example 0/4")
    return int(found[1]), int(found[2])


def _run(args: argparse.Namespace, jobs: list[Job], share: tuple[int, int], exports: list[Export]) -> int:
    import jax

    from unipixel_jax.infer.exports.many import export_results
    from unipixel_jax.infer.jobs import Results
    from unipixel_jax.infer.many import ROWS, Options, run_jobs

    devices = jax.local_devices()
    if args.devices is not None and args.devices > len(devices):
        raise UserError(f"--devices is {args.devices}, and this machine has {len(devices)}")
    results = Results(args.out, args.resume, share)
    own = jobs[share[0] :: share[1]]
    left = results.left(own)
    options = Options(args.rows or ROWS, args.max_new_tokens, upright=not args.as_stored)
    with results:
        if left:
            model = model_of(args)
            start = time.perf_counter()
            for outcome in run_jobs(model.loaded, model.sampling, model.seed, left, options, devices[: args.devices]):
                results.add(outcome)
                done = results.answered + results.failed
                _show(f"{done} of {len(left)} jobs, {results.failed} failed, {done / (time.perf_counter() - start):.2f} a second", done == len(left))
    print(f"{results.answered} answered, {len(own) - len(left)} were there: {results.results}")
    if exports:
        count = export_results(args.out, jobs, exports, upright=not args.as_stored)
        print("\n".join(f"{count} pictures: {export.folder}" for export in exports))
    if results.failed:
        print(f"error: {results.failed} of {len(left)} jobs failed, with the reasons in {results.failures}", file=sys.stderr)
    return int(results.failed > 0)


def _show(line: str, last: bool) -> None:
    """Show the progress in one line of a terminal."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{line}", end="\n" if last else "", file=sys.stderr, flush=True)
