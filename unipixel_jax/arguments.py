"""The parser class, argument types and options that all commands share.

Every command is an argparse parser, and so are the fields of a configuration (train/overrides.py). argparse was chosen over tyro since it starts in a
hundredth of a second, so that ``--help`` needs no package at all, and since a parser can be filled when its command is asked for. The fields that ``train``
takes are known only once the configuration file has run, so that either library would parse them in a second pass.
"""

from __future__ import annotations

import argparse
import importlib
from typing import Any

ATTENTION_HELP = "compute all attention by xla, xla_chunked, pallas_tpu, pallas_gpu or cudnn (default: chosen by platform and shape; --verbose shows)"
MODEL_HELP = (
    "a Hub id such as PolyU-ChenLab/UniPixel-3B, a torch checkpoint's directory, or one made by `unipixel-jax convert to-jax` "
    "(default: the small model that ships with the package, which knows coloured shapes only)"
)
SMALL_MODEL = "shapes"
"""The name of the small model that ships with the package, where a model must or may be named."""
REVISION_HELP = "a branch, a tag or a commit of the Hub's repository (default: its main branch)"


class CommandParser(argparse.ArgumentParser):
    """The parser of a command, with ``--verbose``. The namespace that it fills holds ``parser``, the innermost parser, and ``run``, the command's function.

    Args:
        configure: ``module:function`` that adds the arguments and sets ``run`` when the command is asked for; "" if the caller adds them.
        options: options of ``argparse.ArgumentParser``.
    """

    def __init__(self, *, configure: str = "", **options: Any) -> None:
        super().__init__(**options)
        self._configure = configure
        self.set_defaults(parser=self)
        # SUPPRESS: a subcommand's default would overwrite a --verbose that was given before the subcommand.
        self.add_argument("--verbose", action="store_true", default=argparse.SUPPRESS, help="show the time of each stage, and the traceback of an error")

    def fill(self) -> None:
        """Add the command's arguments, unless that has been done."""
        if self._configure:
            (module, function), self._configure = self._configure.split(":"), ""
            getattr(importlib.import_module(module), function)(self)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does, after filling the parser."""
        self.fill()
        return super().parse_known_args(args, namespace)


def positive(text: str) -> int:
    """Parse a whole number from 1 on, as an argparse type."""
    return _at_least(1, text)


def positive_or_all(text: str) -> int | None:
    """Parse a whole number from 1 on, or "all", which is None, as an argparse type."""
    return None if text == "all" else positive(text)


def count(text: str) -> int:
    """Parse a whole number from 0 on, as an argparse type."""
    return _at_least(0, text)


def _at_least(least: int, text: str) -> int:
    value = int(text)
    if value < least:
        raise argparse.ArgumentTypeError(f"{value}, expected at least {least}")
    return value


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add ``--model`` and ``--revision``: the arguments ``model`` and ``revision`` of ``UniPixel.from_pretrained``."""
    parser.add_argument("--model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("--revision", metavar="NAME", help=REVISION_HELP)


def add_loading(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``infer.from_arguments.model_of``: ``--model``, ``--revision``, ``--dtype``, ``--weights``, ``--activations`` and ``--tensor``."""
    add_model(parser)
    quantise = "quantise the language model's weights while they are read, to int8 or int4 (default: as they are; docs/quantise.md)"
    parser.add_argument("--weights", metavar="DTYPE", help=quantise)
    parser.add_argument("--activations", metavar="DTYPE", help="round the inputs of products with int8 weights too, to int8 (default: full)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="cast the weights and compute in this (default: the checkpoint's own)")
    fewest = "the fewest that hold the weights; --verbose shows"
    parser.add_argument("--tensor", type=positive, metavar="N", help=f"devices of this machine that share a copy of the weights (default: {fewest})")


def add_attention(parser: argparse.ArgumentParser) -> None:
    """Add ``--attention``."""
    parser.add_argument("--attention", metavar="NAME", help=ATTENTION_HELP)
