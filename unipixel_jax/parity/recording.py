"""A reader of recordings: folders with a checkpoint and what the torch reference computed with it (see docs/parity.md)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from unipixel_jax.convert.safetensors_io import read_safetensors
from unipixel_jax.core.files import read_json, read_json_object
from unipixel_jax.errors import UserError

FORMAT = 1

MAX_PLACES = 1 << 20
"""The most patches of a recorded grid, and the most pixels of a recorded frame, that are accepted; recordings are small."""

_ADVICE = "record it again, or copy it again"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}")


@dataclass(frozen=True)
class Case:
    """One case of a recording.

    Attributes:
        name: the case's name, which its files have too.
        kind: what was computed, a key of ``replay.KINDS``.
        options: the case's entry of export.json.
        path: the safetensors file with the case's tensors.
    """

    name: str
    kind: str
    options: Mapping[str, Any]
    path: Path

    @cached_property
    def tensors(self) -> dict[str, np.ndarray]:
        """Every tensor under its full name; bfloat16 is widened to float32."""
        arrays = {name: tensor.load() for name, tensor in read_safetensors(self.path).tensors.items()}
        return {name: a.astype(np.float32) if a.dtype == ml_dtypes.bfloat16 else a for name, a in arrays.items()}

    def input(self, name: str) -> np.ndarray:
        """Return a recorded input.

        Raises:
            UserError: the file has no such tensor.
        """
        return self._get(f"inputs.{name}")

    def has_input(self, name: str) -> bool:
        """Return whether an input was recorded."""
        return f"inputs.{name}" in self.tensors

    def grid(self, name: str) -> np.ndarray:
        """Return a recorded input that holds the numbers of patches of each clip in time, height and width: [clips, 3] integers.

        Raises:
            UserError: the input is missing, or is no such array.
        """
        grid = self.input(name)
        if grid.dtype.kind not in "iu" or grid.ndim != 2 or grid.shape[1] != 3 or not (grid >= 1).all() or not (grid <= MAX_PLACES).all():
            raise UserError(f"{self.path}: {name} is no grid of patches: {_ADVICE}")
        if grid.astype(np.float64).prod(axis=1).sum() > MAX_PLACES:
            raise UserError(f"{self.path}: {name} has more than {MAX_PLACES:,} patches: {_ADVICE}")
        return grid

    def frame_size(self) -> tuple[int, int]:
        """Return height and width of the recorded media in pixels.

        Raises:
            UserError: they are missing, or are not two such numbers.
        """
        sides = self.input("frame_size")
        if sides.dtype.kind not in "iu" or sides.shape != (2,) or not (sides >= 1).all() or float(sides[0]) * float(sides[1]) > MAX_PLACES:
            raise UserError(f"{self.path}: frame_size is no height and width of at most {MAX_PLACES:,} pixels: {_ADVICE}")
        return int(sides[0]), int(sides[1])

    def number(self, name: str, most: int) -> int:
        """Return an option that is a whole number from 1 to ``most``.

        Raises:
            UserError: the option is missing, or is something else.
        """
        value = self.options.get(name)
        if type(value) is not int or not 1 <= value <= most:
            raise UserError(f"{self.name}: {name} is {str(value)[:40]}, expected a whole number from 1 to {most}: {_ADVICE}")
        return value

    def objects(self, name: str, most: int) -> list[Mapping[str, Any]]:
        """Return an option that is a list of 1 to ``most`` JSON objects.

        Raises:
            UserError: the option is missing, or is something else.
        """
        found = self.options.get(name)
        if not isinstance(found, list) or not 0 < len(found) <= most or not all(isinstance(one, dict) for one in found):
            raise UserError(f"{self.name}: {name} is no list of 1 to {most} objects: {_ADVICE}")
        return found

    def beside(self, ending: str) -> Any:
        """Return the content of the JSON file NAME.ENDING.json beside the case's tensors.

        Raises:
            UserError: the file is missing or damaged.
        """
        return read_json(self.path.with_name(f"{self.name}.{ending}.json"), _ADVICE)

    def inputs_like(self, name: str) -> list[np.ndarray]:
        """Return the inputs ``name.0``, ``name.1``, ..., one for each object; or the input ``name`` alone, if there is one."""
        if self.has_input(name):
            return [self.input(name)]
        count = sum(k.startswith(f"inputs.{name}.") for k in self.tensors)
        return [self.input(f"{name}.{i}") for i in range(count)]

    @property
    def outputs(self) -> dict[str, np.ndarray]:
        """The tensors that the reference computed, by name without the prefix."""
        return {k.removeprefix("outputs."): v for k, v in self.tensors.items() if k.startswith("outputs.")}

    def _get(self, name: str) -> np.ndarray:
        if name not in self.tensors:
            raise UserError(f"{self.path} lacks {name}: the recording is incomplete, record it again")
        return self.tensors[name]


@dataclass(frozen=True)
class Recording:
    """A whole recording.

    Attributes:
        root: its folder.
        dtype: "float32" or "bfloat16", the dtype in which the reference ran.
        cases: the cases, in the order of export.json.
        description: the content of export.json.
    """

    root: Path
    dtype: str
    cases: tuple[Case, ...]
    description: Mapping[str, Any]

    @property
    def made_with(self) -> str:
        """Device, dtype and version of torch, in words: "cuda, bfloat16, torch 2.7.1"."""
        device, torch = (str(self.description.get(key, "unknown"))[:40] for key in ("device", "torch"))
        return f"{device}, {self.dtype}, torch {torch}"


def open_recording(root: Path) -> Recording:
    """Read a recording's description; tensors are read when they are asked for.

    Raises:
        UserError: the folder is no recording, or has another format, or files are missing.
    """
    file = root / "export.json"
    if not file.is_file():
        raise UserError(f"{root} is not a recording: it has no export.json; make one with scripts/record_reference.py")
    raw = read_json_object(file, f"the recording cannot be read; {_ADVICE}")
    if raw.get("format") != FORMAT:
        raise UserError(f"{file} has format {str(raw.get('format'))[:40]}, this version reads {FORMAT}")
    dtype, cases = raw.get("dtype"), raw.get("cases")
    if dtype not in ("float32", "bfloat16") or not isinstance(cases, list):
        raise UserError(f"{file} cannot be read: it needs a dtype, float32 or bfloat16, and a list of cases; {_ADVICE}")
    found = tuple(_case(root, file, entry) for entry in cases)
    missing = [case.path.name for case in found if not case.path.is_file()]
    if missing or not cases:
        raise UserError(f"{root}: {', '.join(missing[:10]) if missing else 'no cases'}; the recording is incomplete, copy it again")
    return Recording(root, dtype, found, raw)


def inside(root: Path, name: Any) -> Path:
    """Return the path of a file or folder inside a recording.

    Raises:
        UserError: the name leads out of the recording.
    """
    if not isinstance(name, str) or not name or "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise UserError(f"{root} names {str(name)[:80]!r}, expected a path inside the recording: {_ADVICE}")
    return root / name


def _case(root: Path, file: Path, entry: Any) -> Case:
    """Return the case of an entry of export.json.

    Raises:
        UserError: the entry has no kind, or no name that is safe as a file's name.
    """
    name, kind = (entry.get("name"), entry.get("kind")) if isinstance(entry, dict) else (None, None)
    if not isinstance(name, str) or not _NAME.fullmatch(name) or not isinstance(kind, str):
        raise UserError(f"{file} cannot be read: a case is {str(entry)[:80]}, expected a name of letters, digits and _ . + - and a kind; {_ADVICE}")
    return Case(name, kind, entry, root / "cases" / f"{name}.safetensors")
