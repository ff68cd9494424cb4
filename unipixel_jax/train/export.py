"""`unipixel-jax train export` writes a training run's checkpoint as a model that runs here or in the torch reference."""

from __future__ import annotations

import argparse
from pathlib import Path

from unipixel_jax.errors import UserError

FORMATS = {
    "jax": "a directory that unipixel-jax runs from, adapters merged",
    "torch": "a whole checkpoint for the torch reference, adapters merged",
    "adapter": "a peft adapter and a file with the other trained tensors, as the reference's trainer leaves them",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to a parser."""
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="the directory of a training run")
    parser.add_argument("out", type=Path, metavar="OUT", help="the directory to make")
    parser.add_argument("--format", choices=FORMATS, default="jax", help="; ".join(f"{name}: {what}" for name, what in FORMATS.items()))
    parser.add_argument("--step", type=int, help="which checkpoint (default: the newest)")
    parser.add_argument("--start", type=Path, metavar="DIR", help="where the converted directory lies that training started from, if it was moved")
    parser.add_argument("--base", metavar="DIR", help="with --format adapter: the torch checkpoint that its config.json is to name as the base")
    parser.add_argument("--force", action="store_true", help="replace an output that is not empty")


def run(args: argparse.Namespace) -> int:
    """Export a checkpoint as the parsed arguments say, and print what was written."""
    print(export(args.run_dir, args.out, args.format, step=args.step, start=args.start, base=args.base, force=args.force))
    return 0


def export(
    run_dir: Path, out: Path, format: str = "jax", *, step: int | None = None, start: Path | None = None, base: str | None = None, force: bool = False
) -> str:
    """Write a checkpoint of a run in one of the formats.

    Args:
        run_dir: the run's directory.
        out: the directory to make.
        format: a key of FORMATS.
        step: which checkpoint; None for the newest.
        start: the converted directory that training started from; None for its path at that time.
        base: for the adapter, the torch checkpoint to name as its base; None for the one that `start` was converted from.
        force: replace an output that is not empty.

    Returns:
        A line for the user that says what was written.

    Raises:
        UserError: an unknown format, no such checkpoint or a damaged one, a start with other weights, or an output that cannot be written.
    """
    if format not in FORMATS:
        raise UserError(f"format {format!r} is unknown, expected one of {', '.join(FORMATS)}")
    if base and format != "adapter":
        raise UserError(f"--base {base} goes with --format adapter; a whole model ({format}) has no base")

    # Imported here: the command line must not wait for jax.
    from unipixel_jax.convert import to_jax, to_torch, trained
    from unipixel_jax.core.stored import weights_digest
    from unipixel_jax.core.trees import parse
    from unipixel_jax.train.checkpoints.manager import CHECKPOINTS, TRAINED
    from unipixel_jax.train.checkpoints.reader import read_arrays

    manifest, arrays = read_arrays(run_dir / CHECKPOINTS, step, f"{TRAINED}/")
    run_info = manifest.run_info
    try:
        origin, weights, adapters = Path(run_info.source["start"]), run_info.identity["weights"], run_info.identity["lora"]
        settings = trained.LoraSettings(adapters["rank"], adapters["alpha"], run_info.source["lora_dropout"]) if adapters else None
    except (KeyError, TypeError) as error:
        raise UserError(f"{run_dir}: its checkpoint does not say what it was trained from ({error!r}): expected one of `unipixel-jax train`") from None
    start = start or origin
    if not start.is_dir():
        raise UserError(f"{start}, from which training started, is not there; say where it lies now with --start DIR")
    if weights_digest(start) != weights:
        raise UserError(f"{start} holds other weights than training started from; say where those lie with --start DIR")
    result = trained.open_trained(start, {parse(name, "/")[1:]: array for name, array in arrays.items()}, settings)
    if format == "adapter":
        count = trained.write_adapter(result, out, base, force=force)
    elif format == "torch":
        count = to_torch.write(trained.merged_source(result, str(run_dir)), out, force=force)
    else:
        count = to_jax.convert(trained.merged_source(result, str(run_dir)), out, force=force).tensors
    return f"{out}: {count} tensors of step {manifest.step}, {FORMATS[format]}"
