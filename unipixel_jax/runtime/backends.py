"""What runs the programs of an export: onnxruntime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from unipixel_jax.errors import UserError, needing
from unipixel_jax.runtime.manifest import PartFile

Arrays = Mapping[str, NDArray[np.generic]]


class Program(Protocol):
    """A program that is ready to run."""

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.generic]]:
        """Return the outputs, by name, of inputs by name."""


Backend: TypeAlias = Callable[[Path, PartFile], Program]
"""A function of the folder of an export and a part's file that returns the part's program."""

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
