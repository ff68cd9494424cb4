"""``unipixel-jax train``: a configuration file to a trained model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unipixel_jax.errors import UserError, needing

if TYPE_CHECKING:
    from unipixel_jax.train.config import TrainConfig

EPILOG = """After CONFIG, any field of the configuration can be given another value: --optim.learning-rate 1e-4 --data.datasets refcoco:10,mevis.
CONFIG --help lists them. Starting the same command again goes on from the newest checkpoint. `unipixel-jax train export --help` and
`unipixel-jax train reproduce --help` tell of the other two commands. --verbose, anywhere among the arguments of all
three, shows the traceback of an error."""


def main(arguments: Sequence[str]) -> int:
    """Run ``train`` with its arguments; returns the exit status.

    Raises:
        UserError: see train/loop.py.
    """
    if arguments[:1] == ["export"]:
        from unipixel_jax.train import export

        parser = argparse.ArgumentParser(prog="unipixel-jax train export", description=export.__doc__)
        export.configure(parser)
        return export.run(parser.parse_args(arguments[1:]))
    if arguments[:1] == ["reproduce"]:
        from unipixel_jax.train.reproduce import reproduce

        parser = argparse.ArgumentParser(prog="unipixel-jax train reproduce", description="Compute a saved step that was not finite again.")
        parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="the directory of the run")
        parser.add_argument("file", type=Path, metavar="FILE", help="not_finite_step_N.npz from it")
        args = parser.parse_args(arguments[1:])
        for line in reproduce(args.run_dir, args.file):
            print(line)
        return 0
    parser = argparse.ArgumentParser(prog="unipixel-jax train", description="Train a model as a configuration file says.", epilog=EPILOG)
    parser.add_argument("config", type=Path, metavar="CONFIG", help="a Python file as those in configs/")
    parser.add_argument("fields", nargs=argparse.REMAINDER, metavar="--FIELD VALUE", help="other values for fields of the configuration")
    args = parser.parse_args(arguments)
    with needing("train", "training"):
        return run(args.config, args.fields)


def run(path: Path, overrides: list[str]) -> int:
    """Train as a file says, together with the other processes if there are any."""
    from unipixel_jax.core.distributed import connected
    from unipixel_jax.train.config import load_config

    config = load_config(path, overrides)
    with connected(config.hosts):
        _train(config)
    return 0


def _train(config: TrainConfig) -> None:
    import jax

    from unipixel_jax.core.distributed import barrier
    from unipixel_jax.train.loop import train

    run_dir = Path(config.run_dir or f"runs/{config.name}")
    start = Path(config.start.checkpoint) if config.start.checkpoint is not None else run_dir / "start"
    if config.start.model is not None and jax.process_index() == 0 and not start.exists():
        from unipixel_jax.convert import to_jax
        from unipixel_jax.convert.random import random_source
        from unipixel_jax.infer.loading import EMBEDDED

        tokenizer = Path(config.start.tokenizer) if config.start.tokenizer else EMBEDDED
        to_jax.convert(random_source(config.start.model, tokenizer, config.seed), start)
    barrier("the start")
    if not start.is_dir():
        raise UserError(f"{start} does not exist: expected a directory made by unipixel-jax convert to-jax, see docs/training.md")
    train(config, run_dir, start)

