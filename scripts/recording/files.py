"""Reading and writing of a recording's folder, which is written under a temporary name first."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from .reference import RecordingError

LISTS = ("grad_names", "trained")
"""The entries of a case that are written to files of their own: names of gradients, and trained weights with learning rate and decay."""


def read_case(folder: Path, name: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return a case's inputs and outputs, by name without the prefix."""
    tensors = load_file(folder / "cases" / f"{name}.safetensors")
    return tuple({key.removeprefix(side): value for key, value in tensors.items() if key.startswith(side)} for side in ("inputs.", "outputs."))  # type: ignore[return-value]


def write_case(folder: Path, case: dict[str, Any], inputs: dict[str, torch.Tensor], outputs: dict[str, torch.Tensor]) -> None:
    """Write a case's tensors, and beside them the lists of ``LISTS``, which are removed from the case's entry."""
    cases = folder / "cases"
    cases.mkdir(exist_ok=True)
    for kind in LISTS:
        names = case.pop(kind, None)
        if names is not None:
            (cases / f"{case['name']}.{kind}.json").write_text(json.dumps(names))
    tensors = {f"inputs.{key}": value.contiguous() for key, value in inputs.items()} | {f"outputs.{key}": value for key, value in outputs.items()}
    save_file(tensors, cases / f"{case['name']}.safetensors")


@contextlib.contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``target``, which becomes ``target`` at the end, or is removed if anything goes wrong.

    Raises:
        RecordingError: the target exists, or nothing can be written there.
    """
    if target.exists():
        raise RecordingError(f"--out {target} exists already: name a new folder, or remove it")
    aside = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        aside.mkdir(parents=True)
    except OSError as error:
        raise RecordingError(f"--out {target} cannot be written: {error}") from error
    try:
        yield aside
        aside.rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
