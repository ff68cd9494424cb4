"""The command that the tests of the converter run."""

from collections.abc import Sequence

from unipixel_jax import cli


def main(arguments: Sequence[str]) -> int:
    """`unipixel-jax convert`; returns its exit status."""
    return cli.main(["convert", *arguments])
