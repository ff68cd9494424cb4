#!/usr/bin/env python3
"""Copy some of a recording's cases to a smaller recording. Cases and tensors are left out, but no value is changed.

    python scripts/trim_recording.py recordings/nano_a tests/recordings/nano_a --cases vision_image text train_loss --largest-gradient 256

The recordings under tests/recordings were made by the commands in docs/testing.md. The script needs this package, but not torch.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unipixel_jax.convert.safetensors_io import read_safetensors, write_safetensors
from unipixel_jax.errors import UserError
from unipixel_jax.parity.recording import open_recording

UNREAD = ("vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json", "video_preprocessor_config.json")
"""Files that the reference saves beside tokenizer.json and that a replay does not need."""


def trim(source: Path, target: Path, names: Sequence[str], largest_gradient: int) -> None:
    """Write the named cases of ``source``, with the files they need, to ``target``, which must not exist.

    Gradients with more than ``largest_gradient`` elements are left out of cases that hold the norm of every gradient.

    Raises:
        UserError: a case is unknown, or ``target`` exists.
    """
    recording = open_recording(source)
    cases = {case.name: case for case in recording.cases if case.name in names}
    unknown = [name for name in names if name not in cases]
    if unknown:
        raise UserError(f"{source} has no case {', '.join(unknown)}; it has {', '.join(case.name for case in recording.cases)}")
    if target.exists():
        raise UserError(f"{target} exists; give a new folder, or remove it first")
    (target / "cases").mkdir(parents=True)
    for case in cases.values():
        tensors = read_safetensors(case.path).tensors
        small = largest_gradient if "outputs.grad_norms" in tensors else math.inf
        kept = {name: t for name, t in tensors.items() if not name.startswith("outputs.grad.") or math.prod(t.shape) <= small}
        write_safetensors(target / "cases" / case.path.name, kept, {})
        for list_file in sorted(case.path.parent.glob(f"{case.name}.*.json")):
            shutil.copyfile(list_file, target / "cases" / list_file.name)
    for folder in needed([case.options for case in cases.values()]):
        _copy(source / folder, target / folder)
    description = {**recording.description, "cases": [dict(case.options) for case in cases.values()]}
    (target / "export.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")


def needed(cases: Sequence[Mapping[str, Any]]) -> set[str]:
    """Return the files and folders beside ``cases/`` that these cases read."""
    return {"checkpoint"} | {case[key] for case in cases for key in ("adapter", "media") if key in case}


def _copy(source: Path, target: Path) -> None:
    """Copy a file, or a folder without the files of ``UNREAD``. Permissions are not copied, since recordings may be read-only."""
    if source.is_dir():
        for child in sorted(source.iterdir()):
            if child.name not in UNREAD:
                _copy(child, target / child.name)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def main() -> int:
    """Parse the command line and trim the recording; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="RECORDING")
    parser.add_argument("target", type=Path, metavar="DIR")
    parser.add_argument("--cases", nargs="+", required=True, metavar="NAME")
    parser.add_argument("--largest-gradient", type=int, default=4096, metavar="N", help="leave out gradients with more elements (default: 4096, all)")
    args = parser.parse_args()
    try:
        trim(args.source, args.target, args.cases, args.largest_gradient)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    size = sum(file.stat().st_size for file in args.target.rglob("*") if file.is_file())
    print(f"{args.target}: {len(args.cases)} cases, {size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
