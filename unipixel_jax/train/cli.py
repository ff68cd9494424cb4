"""``unipixel-jax train``: a configuration file to a trained model."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from unipixel_jax.errors import UserError, needing

if TYPE_CHECKING:
    from unipixel_jax.train.config import TrainConfig

EPILOG = """CONFIG is a Python file as those in configs/, with which a model is trained. After it, any field of the configuration can be given another
value: --optim.learning-rate 1e-4 --data.datasets refcoco:10,mevis. CONFIG --help lists them. Starting the same command again goes on from the newest
checkpoint."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Fill the parser of ``train``."""
    from unipixel_jax.train import export

    parser.description, parser.epilog = "Train a model as a configuration file says, or export what was trained.", EPILOG
    commands = parser.add_subparsers(required=True, dest="config", metavar="CONFIG | export | reproduce")
    exporting = commands.add_parser("export", help="make a model that runs here or in the torch reference", description=export.__doc__)
    export.configure(exporting)
    exporting.set_defaults(run=export.run)
    reproducing = commands.add_parser("reproduce", help="compute a saved step that was not finite again", description="Compute a saved step again.")
    reproducing.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="the directory of the run")
    reproducing.add_argument("file", type=Path, metavar="FILE", help="not_finite_step_N.npz from it")
    reproducing.set_defaults(run=_reproduce)
    # its fields, and the help that lists them, are of load_config
    training = type(parser)(prog=f"{parser.prog} CONFIG", add_help=False, allow_abbrev=False)
    training.set_defaults(run=_train, fields=[])
    commands.choices = commands._name_parser_map = _OrConfig(commands.choices, training)


class _OrConfig(dict[str, argparse.ArgumentParser]):
    """Subcommands by their names; any other word is the configuration file of a training."""

    def __init__(self, commands: Mapping[str, argparse.ArgumentParser], training: argparse.ArgumentParser) -> None:
        super().__init__(commands)
        self.training = training

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> argparse.ArgumentParser:
        return self.training


def _reproduce(args: argparse.Namespace) -> int:
    from unipixel_jax.train.reproduce import reproduce

    for line in reproduce(args.run_dir, args.file):
        print(line)
    return 0


def _train(args: argparse.Namespace) -> int:
    """Train as a file says, together with the other processes if there are any."""
    with needing("train", "training"):
        from unipixel_jax.core.distributed import connected
        from unipixel_jax.train.config import load_config

        config = load_config(args.config, args.fields)
        with connected(config.hosts):
            train_together(config)
    return 0


def train_together(config: TrainConfig) -> None:
    """Train as a configuration says, in all processes that are connected; the first of them makes random weights where the configuration asks for such.

    Raises:
        UserError: there are no weights to start from, or one of the errors of ``train``.
    """
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

