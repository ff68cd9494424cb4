"""Mutations of folders: one file changed by what it is, or by what a file system can do to it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from .odd_archives import change_npy, change_safetensors, change_zip
from .odd_bytes import change_bytes, change_text
from .odd_json import change_json
from .odd_pickle import change_pickle

Change = Callable[[bytes, Random], tuple[bytes, str]]

TEMPLATES = (
    "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}", "{{ 'a' * 10**10 }}", "{{ ('%' ~ 10**9 ~ 'd') % 1 }}", "{% if %}",
    "{{ messages[99] }}", "{{ ''.__class__.__mro__ }}", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{{ messages | map('upper') | list }}",
    "{% include 'x' %}", "{{ raise_exception('no') }}", "{% set x = 'aaaaaaaa' %}{% for i in range(40) %}{% set x = x ~ x %}{{ x }}{% endfor %}", "{{ 1 / 0 }}",
    "{{ 10 ** 10 ** 10 }}", "{% for i in range(10**8) %}{{ i }}{% endfor %}", "\0", "{{ messages }}" * 10000, "{" * 100_000,
    "{{ (" + "(" * 5000 + ")" * 5000 + ") }}",
    "{{ cycler.__init__.__globals__ }}", "{{ 'x' | center(10**10) }}", "{{ lipsum(n=10**7) }}", "{{ range(10**9) | list }}", "{{ [0] * 10**10 }}", "",
)  # fmt: skip
"""Chat templates that are broken, try to break out, or have no end."""


def copy(source: Path, target: Path) -> Path:
    """A copy of a folder or file that may be changed."""
    if source.is_dir():
        return Path(shutil.copytree(source, target))
    target.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copyfile(source, target))


def change_folder(folder: Path, rng: Random, among: Sequence[str] = ("*",)) -> str:
    """Change one file of a folder, or two; returns what was done.

    Args:
        folder: is changed in place.
        rng: random numbers.
        among: patterns of names; one of them is chosen first, so that a few small files weigh as much as many large ones.
    """
    notes = []
    for _ in range(rng.choice((1, 1, 1, 2))):
        patterns = [p for p in among if any(file.is_file() for file in folder.rglob(p))]
        if not patterns:
            break
        pattern = rng.choice(patterns)
        file = rng.choice(sorted(file for file in folder.rglob(pattern) if file.is_file() and not file.is_symlink()) or [folder])
        if file == folder:
            break
        notes.append(f"{file.relative_to(folder)} {_replace(file, rng) if rng.random() < 0.1 else change_file(file, rng)}")
    return "; ".join(notes)


def change_file(file: Path, rng: Random) -> str:
    """Change a file by what it is; returns what was done."""
    data = file.read_bytes()
    change = CHANGES.get(file.suffix.lower(), change_bytes)
    if file.name in (".zarray", "metadata", "_METADATA", ".zgroup", "_CHECKPOINT_METADATA") or (change is change_bytes and data[:1] == b"{"):
        change = change_json
    try:
        changed, note = change(data, rng) if data else (b"x", "is not empty")
    except Exception:  # it was changed before, and is no longer what its name says
        changed, note = change_bytes(data, rng)
    file.write_bytes(changed)
    return note


def _replace(file: Path, rng: Random) -> str:
    action = rng.choice(("removed", "empty", "a folder", "a pipe", "a link to itself", "a link to nothing", "a link to /dev/zero", "a link to /etc", "renamed"))
    if action == "empty":
        file.write_bytes(b"")
    elif action == "renamed":
        file.rename(file.with_name(rng.choice((file.name.upper(), f".{file.name}", f"{file.name}.bak"))))
    else:
        file.unlink()
    if action == "a folder":
        file.mkdir()
    elif action == "a pipe":
        os.mkfifo(file)
    elif action.startswith("a link"):
        file.symlink_to({"a link to itself": file.name, "a link to nothing": "nothing"}.get(action, action.removeprefix("a link to ")))
    return action


def _change_template(data: bytes, rng: Random) -> tuple[bytes, str]:
    if rng.random() < 0.4:
        return change_text(data, rng)
    template = rng.choice(TEMPLATES)
    return template.encode(), f"is {template[:60]!r}"


CHANGES: dict[str, Change] = {
    ".json": change_json, ".safetensors": change_safetensors, ".pt": change_zip, ".bin": change_zip, ".zip": change_zip, ".npz": change_zip, ".npy": change_npy,
    ".p": change_pickle, ".pkl": change_pickle, ".csv": change_text, ".txt": change_text, ".jinja": _change_template,
}  # fmt: skip
"""By the ends of names."""
