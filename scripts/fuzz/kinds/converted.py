"""Cases of converted directories, which are inspected, converted back to torch, or loaded for a prompt."""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random

from ..case import Case, Kind, as_command
from ..odd_files import change_folder, copy

PATTERNS = (
    "config.json",
    "manifest.json",
    "manifest.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    ".zarray",
    "0*",
    "params.zip",
    "*",
)


def prepare(folder: Path) -> None:
    """Write a micro model with its arrays in a folder, and one with its arrays in one file."""
    from micro_run import micro_start

    from unipixel_jax.core.stored import pack, packed

    micro_start(folder / "folder")
    params = copy(folder / "folder", folder / "packed") / "params"
    pack(params, packed(params))
    shutil.rmtree(params)


def make(seeds: Path, folder: Path, rng: Random) -> Case:
    """Change one of the directories."""
    form = rng.choice(("folder", "folder", "packed"))
    copy(seeds / form, folder / "in")
    note = f"{form}: {change_folder(folder / 'in', rng, PATTERNS)}"
    if rng.random() < 0.4:
        return Case(load_and_prompt, note)
    run = rng.choice((["inspect", "in"], ["inspect", "in", "--json"], ["to-torch", "in", "out"], ["to-torch", "in", "out"]))
    return Case(["convert", *run], note, ("out",))


@as_command
def load_and_prompt() -> int:
    """Load the model of the folder `in`, and write a prompt with its tokenizer."""
    from unipixel_jax.infer.loading import load
    from unipixel_jax.processing.batch import user_turn

    tokenizer = load("in").tokenizer
    text = tokenizer.render(user_turn("Please segment the dog."), add_generation_prompt=True)
    print(len(tokenizer.encode(text)), "tokens")
    return 0


KIND = Kind("converted", 600, prepare, make)
