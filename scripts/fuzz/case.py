"""What is tried: a case, and a kind of cases."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from unipixel_jax.errors import run_command

PLACE = "a/b/c"
"""A case's folder below the one that is watched, so that ``..`` and ``../..`` are watched too."""


@dataclass(frozen=True)
class Case:
    """One command, to be run in a folder that holds its inputs.

    Attributes:
        run: the arguments after ``unipixel-jax``, or a function that does what a command would do; it returns an exit status.
        note: what was done to the inputs.
        outputs: names in the folder that the command may write.
        kept: of these, what may be there after an error too, since it is complete in itself.
        anywhere: after success there may be new files anywhere, since random arguments say where.
        talks: it tells what it does as it works, so that an error need not be all that it says.
    """

    run: list[str] | Callable[[], int]
    note: str
    outputs: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    anywhere: bool = False
    talks: bool = False

    @property
    def command(self) -> str:
        """For people."""
        return repr(["unipixel-jax", *self.run]) if isinstance(self.run, list) else self.run.__doc__ or self.run.__qualname__


def as_command(function: Callable[[], int]) -> Callable[[], int]:
    """A function that ends as the commands of unipixel-jax do."""

    @functools.wraps(function)
    def run() -> int:
        return run_command(function, False)

    return run


@dataclass(frozen=True)
class Kind:
    """Cases of one sort.

    Attributes:
        name: for tables and ``--only``.
        share: how many of 5,000 cases are of it.
        prepare: writes sound files, of which the cases are made, to a folder.
        make: from that folder, the case's own empty folder (which is the working directory) and random numbers to a case; writes the inputs.
    """

    name: str
    share: int
    prepare: Callable[[Path], None]
    make: Callable[[Path, Path, Random], Case]
