"""Cases of the fuzz, and kinds of cases."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from unipixel_jax.errors import run_command

PLACE = "a/b/c"
"""A case's folder below the watched one; ``..`` and ``../..`` are watched too, since commands may write there by mistake."""


@dataclass(frozen=True)
class Case:
    """One command, to be run in a folder that holds its inputs.

    Attributes:
        run: the arguments after ``unipixel-jax``, or a function that does what a command would do; it returns an exit status.
        note: what was done to the inputs, in words.
        outputs: names in the folder that the command may write.
        kept: the outputs that may be there after an error too, since each is complete in itself.
        anywhere: whether there may be new files anywhere after success, since random arguments say where.
        talks: whether the command prints what it does as it works, so that an error need not be its only line.
    """

    run: list[str] | Callable[[], int]
    note: str
    outputs: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    anywhere: bool = False
    talks: bool = False

    @property
    def command(self) -> str:
        """The command in words, for people."""
        return repr(["unipixel-jax", *self.run]) if isinstance(self.run, list) else self.run.__doc__ or self.run.__qualname__


def as_command(function: Callable[[], int]) -> Callable[[], int]:
    """Make a function end as the commands of unipixel-jax do: with a status, and after an error with one line."""

    @functools.wraps(function)
    def run() -> int:
        return run_command(function, False)

    return run


@dataclass(frozen=True)
class Kind:
    """A kind of cases.

    Attributes:
        name: the kind's name in tables and for ``--only``.
        share: how many of 5,000 cases are of this kind.
        prepare: writes sound files, of which the cases are made, to a folder.
        make: writes the inputs of a case and returns the case, given the folder of sound files, the case's own empty folder (which is the working directory)
            and a source of random numbers.
    """

    name: str
    share: int
    prepare: Callable[[Path], None]
    make: Callable[[Path, Path, Random], Case]
