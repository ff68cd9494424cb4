"""What the arguments of all commands have in common.

Every command is an argparse parser, and so are the fields of a configuration (train/overrides.py). argparse and not tyro: it starts in a hundredth of a
second, so that ``--help`` needs no package at all; a parser can be filled when its command is asked for; and the fields that ``train`` takes are known only
once the configuration file has run, so that they are a second parse in either library.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

ATTENTION_HELP = "compute all attention by xla, xla_chunked, pallas_tpu, pallas_gpu or cudnn (default: chosen by platform and shape; --verbose shows)"
MODEL_HELP = "a directory made by `unipixel-jax convert to-jax` (default: the small model that ships with the package, which knows coloured shapes only)"


class CommandParser(argparse.ArgumentParser):
    """The parser of a command, with ``--verbose``; what it parses has ``parser``, the innermost one, and ``run`` once its room has filled it.

    Args:
        configure: ``module:function`` that adds the arguments when the command is asked for; "" if they are added at once.
        options: of argparse.
    """

    def __init__(self, *, configure: str = "", **options: Any) -> None:
        super().__init__(**options)
        self._configure = configure
        self.set_defaults(parser=self)
        # a default here would hide the option where it stands before a subcommand
        self.add_argument("--verbose", action="store_true", default=argparse.SUPPRESS, help="show the time of each stage, and the traceback of an error")

    def fill(self) -> None:
        """Add the command's arguments, unless they are there."""
        if self._configure:
            (module, function), self._configure = self._configure.split(":"), ""
            getattr(importlib.import_module(module), function)(self)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does, after filling the parser."""
        self.fill()
        return super().parse_known_args(args, namespace)


def positive(text: str) -> int:
    """A whole number from 1, for argparse."""
    return _at_least(1, text)


def count(text: str) -> int:
    """A whole number from 0, for argparse."""
    return _at_least(0, text)


def _at_least(least: int, text: str) -> int:
    value = int(text)
    if value < least:
        raise argparse.ArgumentTypeError(f"{value}, expected at least {least}")
    return value


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add ``--model``."""
    parser.add_argument("--model", type=Path, metavar="DIR", help=MODEL_HELP)


def add_attention(parser: argparse.ArgumentParser) -> None:
    """Add ``--attention``."""
    parser.add_argument("--attention", metavar="NAME", help=ATTENTION_HELP)
