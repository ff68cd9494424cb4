"""Reading a recording: a folder with a small checkpoint and what the torch reference computed with it (see docs/parity.md)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from unipixel_jax.convert.safetensors_io import read_safetensors
from unipixel_jax.errors import UserError

FORMAT = 1


@dataclass(frozen=True)
class Case:
    """One case of a recording.

    Attributes:
        name: names its file.
        kind: what was computed.
        options: the other entries of its description.
        path: the safetensors file.
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
        """A recorded input.

        Raises:
            UserError: the file has no such tensor.
        """
        return self._get(f"inputs.{name}")

    def has_input(self, name: str) -> bool:
        """Whether an input was recorded."""
        return f"inputs.{name}" in self.tensors

    def inputs_like(self, name: str) -> list[np.ndarray]:
        """``name``, or ``name.0``, ``name.1``, ...: one array per object."""
        if self.has_input(name):
            return [self.input(name)]
        count = sum(k.startswith(f"inputs.{name}.") for k in self.tensors)
        return [self.input(f"{name}.{i}") for i in range(count)]

    @property
    def outputs(self) -> dict[str, np.ndarray]:
        """What the reference computed, under short names."""
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
        cases: in the order of export.json.
        description: export.json.
    """

    root: Path
    dtype: str
    cases: tuple[Case, ...]
    description: Mapping[str, Any]


def open_recording(root: Path) -> Recording:
    """Read a recording's description.

    Raises:
        UserError: not a recording, another format, or files are missing.
    """
    file = root / "export.json"
    if not file.is_file():
        raise UserError(f"{root} is not a recording: it has no export.json; make one with scripts/record_reference.py")
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        cases = [(c["name"], c["kind"], c) for c in raw["cases"]]
        dtype = raw["dtype"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} cannot be read ({error!r}); record it again") from error
    if raw.get("format") != FORMAT:
        raise UserError(f"{file} has format {raw.get('format')!r}, this version reads {FORMAT}")
    found = tuple(Case(name, kind, options, root / "cases" / f"{name}.safetensors") for name, kind, options in cases)
    missing = [case.path.name for case in found if not case.path.is_file()]
    if missing or not cases:
        raise UserError(f"{root}: {', '.join(missing) if missing else 'no cases'}; the recording is incomplete, copy it again")
    return Recording(root, dtype, found, raw)
