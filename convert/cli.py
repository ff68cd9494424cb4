"""`unipixel-jax convert`: the commands to-jax, to-torch and inspect."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

from unipixel_jax.arguments import REVISION_HELP, positive
from unipixel_jax.config import SAM2_SIZES
from unipixel_jax.errors import UserError

TO_JAX = """Make a directory that unipixel-jax loads.

SRC is a UniPixel checkpoint, by its directory or its Hub id (PolyU-ChenLab/UniPixel-3B), or a directory with a LoRA adapter or partial weights (then its
base is found from its config.json or given with --base, and both are merged). Without SRC, --qwen and --sam2 assemble a fresh, untrained UniPixel as the
reference's training starts one: the new tokens are appended, their rows are the mean of all others, and the new layers are drawn at random. In either case
--partial replaces weights of the model by those of partial checkpoints, which stages of training leave; then SRC may be a converted directory too."""

TO_TORCH = """Make a torch checkpoint that the reference loads, with the names, dtypes, bytes and files that the source had; every tensor is compared with
the checksum that was taken when it was converted."""

INSPECT = """Say what a checkpoint, an adapter, a Qwen2.5-VL directory, a SAM 2.1 file or a converted directory holds. Reads headers only. The exit status
is 1 if something is missing or unexpected."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Fill the parser of ``convert``."""
    parser.description = "Convert weights between torch and JAX, or say what a checkpoint holds."
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    to_jax = commands.add_parser("to-jax", help="from torch to JAX", description=TO_JAX, formatter_class=argparse.RawDescriptionHelpFormatter)
    to_jax.add_argument("paths", nargs="*", metavar="SRC DST", help="source and output; with --qwen only the output; with --dry-run no output is needed")
    to_jax.add_argument("--revision", metavar="NAME", help=REVISION_HELP)
    to_jax.add_argument("--base", type=Path, metavar="DIR", help="the model that an adapter was trained on (default: base_model_path in its config.json)")
    partial = "a partial checkpoint that replaces weights, a directory or its pytorch_model.safetensors; may be given several times, a later one wins"
    to_jax.add_argument("--partial", type=Path, action="append", default=[], metavar="PATH", help=partial)
    to_jax.add_argument("--qwen", type=Path, metavar="DIR", help="a Qwen2.5-VL checkpoint, for a fresh start")
    to_jax.add_argument("--sam2", type=Path, metavar="FILE", help="an official SAM 2.1 checkpoint, for a fresh start or under an adapter")
    sizes = ", ".join(SAM2_SIZES)
    to_jax.add_argument("--sam2-size", metavar="SIZE", help=f"{sizes}, or a JSON file with the fields of Sam2Config (default: seen from the weights)")
    to_jax.add_argument("--image-size", type=int, default=768, metavar="PIXELS", help="side of SAM 2's square input, for a fresh start (default: 768)")
    hidden = "tokens with which each <|seg|> prompts SAM 2, for a fresh start (default: 2)"
    to_jax.add_argument("--hidden-tokens", type=positive, default=2, metavar="N", help=hidden)
    to_jax.add_argument("--seed", type=int, default=0, help="seed of the random weights of a fresh start (default: 0)")
    to_jax.add_argument("--dry-run", action="store_true", help="check names, shapes and dtypes, write nothing")
    to_jax.set_defaults(run=_to_jax)

    to_torch = commands.add_parser("to-torch", help="from JAX to torch", description=TO_TORCH, formatter_class=argparse.RawDescriptionHelpFormatter)
    to_torch.add_argument("source", type=Path, metavar="SRC", help="a converted directory")
    to_torch.add_argument("target", type=Path, metavar="DST", help="the torch checkpoint to make")
    to_torch.set_defaults(run=_to_torch)

    inspect = commands.add_parser("inspect", help="say what a checkpoint holds", description=INSPECT, formatter_class=argparse.RawDescriptionHelpFormatter)
    inspect.add_argument("source", type=Path, metavar="SRC", help="a directory or file")
    inspect.add_argument("--json", action="store_true", help="print a JSON object")
    inspect.set_defaults(run=_inspect)

    for command in (to_jax, to_torch):
        command.add_argument("--force", action="store_true", help="replace an output that is not empty")


def _to_jax(args: argparse.Namespace) -> int:
    from . import sources, to_jax  # imported here: `inspect` must not wait for jax
    from .output import require_free

    start = time.perf_counter()
    source, target = _places(args)
    if source is None:
        opened = sources.with_partials(sources.open_fresh(args.qwen, args.sam2, args.sam2_size, args.image_size, args.seed, args.hidden_tokens), args.partial)
    else:
        from unipixel_jax.hub.resolve import checkpoint, is_local

        if not is_local(source, args.revision) and target:  # before gigabytes are downloaded for it
            require_free(target, args.force)
        directory, origin = checkpoint(source, revision=args.revision)
        opened = sources.open_source(directory, args.base, args.sam2, args.seed, args.partial)
        opened = replace(opened, description={**opened.description, **origin})
    if args.dry_run and target:
        require_free(target, args.force, opened.inputs)
    summary = to_jax.check(opened) if args.dry_run or target is None else to_jax.convert(opened, target, force=args.force)
    size = f"{summary.tensors} tensors, {summary.parameters:,} parameters, {summary.arrays} arrays, {summary.nbytes / 1e9:.3g} GB"
    print(f"all is there, nothing was written: {size}" if args.dry_run else f"{target}: {size} in {time.perf_counter() - start:.1f} s")
    return 0


def _places(args: argparse.Namespace) -> tuple[str | None, Path | None]:
    """Return source and output. The source, a path or a Hub id, is None for a fresh start, and the output may be None in a dry run.

    Raises:
        UserError: there are too few or too many paths, only one of --qwen and --sam2, or a revision of a fresh start.
    """
    paths = list(args.paths)
    if args.qwen and args.revision:
        raise UserError(f"--revision {args.revision} goes with a Hub id; a fresh start (--qwen) has none")
    if (args.qwen is None) != (args.sam2 is None) and not (args.qwen is None and paths):
        raise UserError("a fresh start needs both --qwen DIR and --sam2 FILE")
    expected = 1 if args.qwen else 2
    if len(paths) not in ((expected - 1, expected) if args.dry_run else (expected,)):
        raise UserError(f"found {len(paths)} paths, expected {'DST' if args.qwen else 'SRC DST'}")
    source = None if args.qwen else paths.pop(0)
    return source, Path(paths[0]) if paths else None


def _to_torch(args: argparse.Namespace) -> int:
    from . import to_torch

    start = time.perf_counter()
    count = to_torch.convert(args.source, args.target, force=args.force)
    print(f"{args.target}: {count} tensors in {time.perf_counter() - start:.1f} s, all with their checksums")
    return 0


def _inspect(args: argparse.Namespace) -> int:
    from .inspection import inspect

    report = inspect(args.source)
    print(json.dumps(report.as_json(), indent=2) if args.json else report.as_text())
    return 0 if report.complete else 1
