"""Parts as StableHLO by ``jax.export``: portable programs, which run on any platform that has a compiler for StableHLO, or programs for one chip with this
package's kernels. Both run without this package.

The weights are arguments of the programs and lie in one file of safetensors, so that they are stored once for all parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from numpy.typing import NDArray

from unipixel_jax.core.accelerators import CHIPS, abstract_mesh
from unipixel_jax.core.trees import join
from unipixel_jax.errors import UserError, needing
from unipixel_jax.export.parts import Part, make_parts
from unipixel_jax.export.shapes import Shapes
from unipixel_jax.models.unipixel import UniPixelModel
from unipixel_jax.ops.attention import use_attention
from unipixel_jax.runtime.backends import Arrays
from unipixel_jax.runtime.manifest import PartFile

WEIGHTS = "weights.safetensors"
PLATFORMS = ("cpu", "cuda", "tpu")
KERNELS = tuple(jax.export.DisabledSafetyCheck.custom_call(name) for name in ("__gpu$xla.gpu.triton", "__cudnn$fmhaSoftmax"))
"""Calls of kernels for GPUs, whose form XLA may change from one release to the next; that of kernels for TPUs is kept."""


def weights(model: UniPixelModel) -> dict[str, Any]:
    """Return the weights of a model by their paths."""
    return {name: leaf.get_value() for name, (_, leaf) in _variables(nnx.state(model)).items()}


def _variables(state: Any) -> dict[str, tuple[Any, Any]]:
    """Return the key path and the variable of each weight, by its path as text."""
    flat: Any = nnx.to_flat_state(state)
    return {join(path): (path, leaf) for path, leaf in flat}


def save_weights(model: UniPixelModel, path: Path) -> None:
    """Write the weights of a model.

    Raises:
        UserError: a package is missing.
    """
    with needing("stablehlo", "export --format stablehlo"):
        from safetensors.numpy import save_file
    save_file({name: np.asarray(value) for name, value in weights(model).items()}, path)


def convert(model: UniPixelModel, shapes: Shapes, part: Part, platforms: Sequence[str], chip: str | None = None) -> bytes:
    """Return a part as a program of the weights, by their paths, and the part's inputs, by position.

    Attention is XLA's own, since kernels for one platform keep a program from all others; for a ``chip`` it is what is chosen there (docs/attention.md). The
    chip need not be on this machine.

    Raises:
        UserError: a package is missing, or the chip is unknown.
    """
    with needing("stablehlo", "export --format stablehlo"):
        import flatbuffers  # noqa: F401
    graph, state = nnx.split(model)
    variables = _variables(state)

    def run(own: Mapping[str, jax.Array], *inputs: jax.Array) -> tuple[jax.Array, ...]:
        flat = [(path, leaf.replace(own[name])) for name, (path, leaf) in variables.items()]
        whole = nnx.merge(graph, nnx.from_flat_state(flat))
        return make_parts(whole, shapes)[part.name].function(*inputs)

    given = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in weights(model).items()}
    target = use_attention("xla") if chip is None else jax.sharding.use_abstract_mesh(abstract_mesh(chip))
    with target:
        made = jax.export.export(jax.jit(run), platforms=tuple(platforms), disabled_checks=() if chip is None else KERNELS)
        return bytes(made(given, *part.inputs.values()).serialize())


def platform_of(chip: str) -> str:
    """Return the platform of a chip, as ``jax.export`` names it."""
    return {"gpu": "cuda"}.get(CHIPS[chip].platform, CHIPS[chip].platform)


class StableHloProgram:
    """A program of the runtime (``runtime.session.Runtime``) that JAX runs, for comparison.

    Args:
        folder: the folder of the export.
        part: the program.

    Raises:
        UserError: safetensors is missing, or the program cannot be read or is for another platform.
    """

    def __init__(self, folder: Path, part: PartFile) -> None:
        with needing("stablehlo", "running a StableHLO export"):
            from safetensors.numpy import load_file
        weights = next(name for name in part.checksums if name != part.file)
        try:
            program = jax.export.deserialize(bytearray((folder / part.file).read_bytes()))
        except ValueError as error:
            raise UserError(f"{folder / part.file} is no program of StableHLO ({str(error)[:200]}): export the model again") from None
        here = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
        if here not in program.platforms:
            raise UserError(f"{folder / part.file} is for {', '.join(program.platforms)}, and this machine computes on {here}: export with --platform {here}")
        self._call = program.call
        self._weights: Any = load_file(folder / weights)
        self._part = part

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.generic]]:
        """See ``Program``."""
        found = self._call(self._weights, *(inputs[own.name] for own in self._part.inputs))
        return {own.name: np.asarray(value) for own, value in zip(self._part.outputs, found, strict=True)}
