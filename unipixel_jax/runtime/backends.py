"""What runs the programs of an export: onnxruntime, or for comparison JAX itself with those of StableHLO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from unipixel_jax.errors import UserError, needing
from unipixel_jax.runtime.manifest import PartFile

Arrays = Mapping[str, NDArray[np.generic]]


class Program(Protocol):
    """A program that is ready to run."""

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.generic]]:
        """Return the outputs, by name, of inputs by name."""


class OnnxProgram:
    """A program run by onnxruntime.

    Args:
        folder: the folder of the export.
        part: the program.
        providers: onnxruntime's execution providers, the preferred one first; None for all that are installed.

    Raises:
        UserError: onnxruntime is missing or cannot read the program.
    """

    def __init__(self, folder: Path, part: PartFile, providers: Sequence[str] | None = None) -> None:
        with needing("runtime", "running an ONNX export"):
            import onnxruntime
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                str(folder / part.file), options, providers=list(providers or onnxruntime.get_available_providers())
            )
        except Exception as error:  # onnxruntime has an exception for each kind of failure, and no common one
            raise UserError(f"onnxruntime cannot read {folder / part.file} ({str(error)[:200]}): export the model again") from None
        self._outputs = [own.name for own in part.outputs]
        self._inputs = [own.name for own in part.inputs if own.name in {given.name for given in self._session.get_inputs()}]

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.generic]]:
        """See ``Program``. An input that the program does not depend on is none of onnxruntime's."""
        found = self._session.run(self._outputs, {name: inputs[name] for name in self._inputs})
        return dict(zip(self._outputs, found, strict=True))


class StableHloProgram:
    """A program run by JAX, for comparison.

    Args:
        folder: the folder of the export.
        part: the program.

    Raises:
        UserError: JAX or safetensors is missing, or the program cannot be read.
    """

    def __init__(self, folder: Path, part: PartFile) -> None:
        with needing("stablehlo", "running a StableHLO export"):
            import jax.export
            from safetensors.numpy import load_file
        weights = next(name for name in part.checksums if name != part.file)
        try:
            self._call = jax.export.deserialize(bytearray((folder / part.file).read_bytes())).call
        except ValueError as error:
            raise UserError(f"{folder / part.file} is no program of StableHLO ({str(error)[:200]}): export the model again") from None
        self._weights: Any = load_file(folder / weights)
        self._part = part

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.generic]]:
        """See ``Program``."""
        found = self._call(self._weights, *(inputs[own.name] for own in self._part.inputs))
        return {own.name: np.asarray(value) for own, value in zip(self._part.outputs, found, strict=True)}


def open_program(folder: Path, part: PartFile, kind: str) -> Program:
    """Return a part's program, ready to run.

    Raises:
        UserError: it cannot be read, or what runs it is not installed.
    """
    return OnnxProgram(folder, part) if kind == "onnx" else StableHloProgram(folder, part)
