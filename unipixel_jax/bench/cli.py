"""`unipixel-jax bench`: measure the model's speed on this machine, and print a table."""

from __future__ import annotations

import argparse


def configure(parser: argparse.ArgumentParser) -> None:
    """Fill the parser of ``bench``; those of its commands, whose choices are names out of modules that need JAX, are filled when they are asked for."""
    parser.description = __doc__
    commands = parser.add_subparsers(required=True, metavar="WHAT")
    measuring = "unipixel_jax.bench.measuring"
    commands.add_parser("models", help="SAM 2 and the language model, in comparison with the torch reference", configure=f"{measuring}:configure_models")
    commands.add_parser("attention", help="every attention backend, at the shapes that the models use", configure=f"{measuring}:configure_attention")
