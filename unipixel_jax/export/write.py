"""Writing an export: a folder with the programs of the parts, the tokenizer, ``config.json`` and a manifest. It appears when it is complete."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from unipixel_jax.convert.output import new_directory
from unipixel_jax.core.accelerators import abstract_mesh, is_here
from unipixel_jax.errors import UserError
from unipixel_jax.export import to_onnx, to_stablehlo
from unipixel_jax.export.check import Arrays, Checker
from unipixel_jax.export.parts import Part, make_parts
from unipixel_jax.export.shapes import Shapes
from unipixel_jax.infer.loading import LoadedModel
from unipixel_jax.models.quantised import require_full
from unipixel_jax.models.unipixel import unstack_towers
from unipixel_jax.processing.batch import user_turn
from unipixel_jax.runtime import ascend
from unipixel_jax.runtime.backends import OnnxProgram
from unipixel_jax.runtime.manifest import Array, ExportManifest, PartFile, checksum

log = logging.getLogger(__name__)

PARTS = ("encode", "prompt", "decode", "first_frame", "track", "vision", "prefill", "step")
KINDS = ("onnx", "stablehlo")
SUFFIXES = {"onnx": ".onnx", "stablehlo": ".stablehlo"}
MARK = "\ue000"
"""A character for private use, which stands for a user's words while a prompt's form is found out."""


def export(
    loaded: LoadedModel,
    target: Path,
    kind: str,
    shapes: Shapes,
    names: Sequence[str] = PARTS,
    platforms: Sequence[str] = to_stablehlo.PLATFORMS,
    chip: str | None = None,
) -> ExportManifest:
    """Export parts of a model, and compare each program with JAX.

    Args:
        loaded: the model with weights in float32, read without a mesh. Its towers are unstacked.
        target: the folder to make; it may exist if it is empty.
        kind: "onnx" or "stablehlo".
        shapes: what the parts have room for.
        names: the parts.
        platforms: the platforms of StableHLO; ONNX knows none.
        chip: the chip for whose kernels StableHLO is made, instead of for ``platforms``. Such programs are compared with JAX only on a machine that has it.

    Raises:
        UserError: the target exists, a part is unknown, the model is quantised, the shapes are beyond what it can have, or a package is missing.
    """
    unknown = [name for name in names if name not in PARTS]
    if unknown or not names:
        raise UserError(f"there is no part {unknown[0][:40] if unknown else 'named'!r}: expected some of {', '.join(PARTS)}")
    if chip is not None:
        abstract_mesh(chip)  # refuses an unknown one
        platforms = (to_stablehlo.platform_of(chip),)
    require_full(loaded.config, "this model", "export")
    unstack_towers(loaded.model)
    size = sum(value.nbytes for value in to_stablehlo.weights(loaded.model).values())
    with new_directory(target, False, size) as folder:
        parts = make_parts(loaded.model, shapes)
        checker = Checker(loaded.model, shapes, parts)
        written = {}
        if kind == "stablehlo":
            to_stablehlo.save_weights(loaded.model, folder / to_stablehlo.WEIGHTS)
        for name in names:
            log.info("exporting %s", name)
            written[name] = _write(parts[name], folder, kind, loaded, shapes, platforms, chip, checker)
        before, after = loaded.tokenizer.render(user_turn(MARK), add_generation_prompt=True).split(MARK)
        manifest = ExportManifest(
            kind=kind,
            platforms=tuple(platforms) if kind == "stablehlo" else (),
            chip=chip or "",
            model=loaded.directory.name if loaded.directory else "",
            shapes=shapes.numbers,
            sizes=shapes.sizes(loaded.config),
            prompt=(before, after),
            pad_id=loaded.tokenizer.pad_id,
            end_tokens=loaded.end_tokens,
            parts=written,
        )
        if kind == "onnx":
            (folder / ascend.SCRIPT).write_text(ascend.script(list(written)), encoding="utf-8")
        loaded.tokenizer.backend.save(str(folder / "tokenizer.json"))
        assert loaded.directory is not None, "it was read from a directory"
        shutil.copyfile(loaded.directory / "config.json", folder / "config.json")
        manifest.write(folder)
    return manifest


def _write(
    part: Part, folder: Path, kind: str, loaded: LoadedModel, shapes: Shapes, platforms: Sequence[str], chip: str | None, checker: Checker
) -> PartFile:
    """Write a part's program and, where it can run here, compare it with JAX."""
    path = folder / f"{part.name}{SUFFIXES[kind]}"
    if kind == "onnx":
        to_onnx.save(to_onnx.convert(part), path)
        files = [path, *folder.glob(f"{path.name}.data")]
    else:
        path.write_bytes(to_stablehlo.convert(loaded.model, shapes, part, platforms, chip))
        files = [path, folder / to_stablehlo.WEIGHTS]
    inputs = tuple(Array(name, tuple(spec.shape), str(spec.dtype)) for name, spec in part.inputs.items())
    made = zip(part.outputs, jax.eval_shape(part.function, *part.inputs.values()), strict=True)
    outputs = tuple(Array(name, tuple(spec.shape), str(spec.dtype)) for name, spec in made)
    file = PartFile(path.name, {own.name: checksum(own) for own in files}, inputs, outputs)
    if chip is not None and not is_here(chip):
        return file
    program = OnnxProgram(folder, file) if kind == "onnx" else to_stablehlo.StableHloProgram(folder, file)

    def run(given: Any) -> Arrays:
        return {name: np.asarray(value) for name, value in program.run(given).items()}

    return PartFile(file.file, file.checksums, inputs, outputs, checker.errors(part.name, run))
