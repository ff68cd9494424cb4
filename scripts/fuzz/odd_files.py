"""Mutations of folders: a file's content is changed in a way that suits its format, or the file itself is removed or replaced."""

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
"""Chat templates that are broken, try to leave the sandbox, or take endless time or memory."""


def copy(source: Path, target: Path) -> Path:
    """Copy a folder or file; return the copy's path."""
    if source.is_dir():
        return Path(shutil.copytree(source, target))
    target.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copyfile(source, target))


def change_folder(folder: Path, rng: Random, among: Sequence[str] = ("*",)) -> str:
    """Change one or two files of a folder; return what was done.

    Args:
        folder: the folder, which is changed in place.
        rng: source of random numbers.
        among: patterns of names. One of them is chosen first, so that a few small files are changed as often as many large ones.
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
    """Change a file in a way that suits its format; return what was done."""
    data = file.read_bytes()
    change = CHANGES.get(file.suffix.lower(), change_bytes)
    if file.name in (".zarray", "metadata", "_METADATA", ".zgroup", "_CHECKPOINT_METADATA") or (change is change_bytes and data[:1] == b"{"):
        change = change_json
    try:
        changed, note = change(data, rng) if data else (b"x", "is not empty")
    except Exception:  # an earlier change left the file in another format than its name says
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
"""The mutations of formats, by the suffix of a file's name."""
