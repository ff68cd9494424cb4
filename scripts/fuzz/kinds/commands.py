"""Cases of command lines: every subcommand, with odd values and with missing and doubled arguments.

Commands that take minutes are always given a wrong argument.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from random import Random

from ..case import Case, Kind
from ..odd_files import copy
from . import ROOT
from .grammar import COMMANDS, LONG, OUTPUTS, WORDS


def prepare(folder: Path) -> None:
    """Write a micro model as a torch checkpoint and as a converted directory, and a photo."""
    from micro_run import micro_start

    from unipixel_jax.convert import to_torch
    from unipixel_jax.core.stored import pack, packed

    to_torch.convert(micro_start(folder / "model"), folder / "torch")
    params = folder / "model" / "params"
    pack(params, packed(params))  # since one file is copied faster than hundreds
    shutil.rmtree(params)
    copy(ROOT / "unipixel_jax" / "assets" / "photo.png", folder / "photo.png")


def make(seeds: Path, folder: Path, rng: Random) -> Case:
    """Make a command with random arguments, in a folder that holds everything that paths can name."""
    _furnish(seeds, folder)
    command = rng.choice(list(COMMANDS))
    positionals, options = COMMANDS[command]
    arguments = [[_value(values, rng)] for values in positionals if rng.random() < 0.95]
    wanted = set(rng.sample(list(options), min(len(options), rng.choice((0, 1, 1, 2, 3)))))
    if command in LONG:
        wanted.add(next(iter(options)))
    for option in sorted(wanted):
        value = [_value(options[option], rng)] if options[option] and (command in LONG or rng.random() < 0.97) else []
        arguments.append([f"{option}={value[0]}"] if value and rng.random() < 0.3 else [option, *value])
    if rng.random() < 0.1:
        rng.shuffle(arguments)
    if rng.random() < 0.05:
        arguments.append([rng.choice(WORDS)])
    run = [*command.split(), *(part for argument in arguments for part in argument)]
    targets = {value for option, _, value in (part.partition("=") for part in run) if option in OUTPUTS}
    targets |= {after for before, after in pairwise(run) if before in OUTPUTS}
    replaced = tuple(t for t in targets if t not in run[1:2] and (folder / t[:255]).is_file())
    return Case(run, "", ("old.json", "old.npz", *replaced), anywhere=True)


def _value(values: Sequence[str], rng: Random) -> str:
    """Choose a value, which most of the time is the first, sensible one."""
    return values[0] if rng.random() < 0.7 else rng.choice(values)


def _furnish(seeds: Path, folder: Path) -> None:
    for name in ("model", "torch", "photo.png"):
        copy(seeds / name, folder / name)
    for number in (1, 2):
        copy(seeds / "photo.png", folder / "frames" / f"{number}.png")
    for name, text in (
        ("notes.txt", "no image"),
        ("folder/mine.txt", "of the user"),
        ("old.json", "{}"),
        ("old.npz", "old"),
        ("empty", ""),
        ("old/a.json", "{}"),
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to("loop")
    (folder / "dangling").symlink_to("nowhere/at/all")
    if os.geteuid() == 0:
        os.mknod(folder / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    else:
        (folder / "null").symlink_to("/dev/null")


KIND = Kind("commands", 700, prepare, make)
