"""Reading what lies under a step of a run's checkpoints: its manifest, and all or some of its arrays."""

from __future__ import annotations

import gc
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath  # type: ignore[import-untyped]

from unipixel_jax.core.distributed import any_process
from unipixel_jax.core.files import read_json
from unipixel_jax.core.fingerprint import fingerprints
from unipixel_jax.core.trees import join, key_path
from unipixel_jax.errors import UserError
from unipixel_jax.train.checkpoints.manifest import CorruptCheckpointError, Manifest
from unipixel_jax.train.checkpoints.orbax_noise import silence


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of any tree by their paths, as `trained/text/embed/weight`. An nnx.State has the names of the dictionary that it stands for."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {join(key_path(keys), "/"): leaf for keys, leaf in leaves}
    assert len(named) == len(leaves), "two leaves have the same name"
    return named


def read_manifest(directory: Path, step: int) -> Manifest:
    """The manifest of one step.

    Raises:
        CorruptCheckpointError: it cannot be read.
        UserError: another version of this package wrote it.
    """
    try:
        raw = read_json(directory / str(step) / "manifest" / "metadata")
    except UserError as error:
        raise CorruptCheckpointError(f"its manifest: {error}") from None
    return Manifest.from_json(raw, directory / str(step))


def read_arrays(directory: str | Path, step: int | None, prefix: str) -> tuple[Manifest, dict[str, np.ndarray]]:
    """A part of one checkpoint's arrays on the host, without touching the directory.

    Args:
        directory: of a run's checkpoints; training may be writing to it.
        step: which; None for the newest.
        prefix: of the names to read, as `trained/`.

    Returns:
        The manifest, and the arrays under their whole names.

    Raises:
        UserError: there is no such checkpoint, or it is damaged.
    """
    root = Path(directory).absolute()
    steps = sorted(int(path.name) for path in root.iterdir() if path.name.isdecimal()) if root.is_dir() else []
    if not steps:
        raise UserError(f"{directory} holds no checkpoint; expected the checkpoints of a training run")
    if step is not None and step not in steps:
        raise UserError(f"{directory} has no checkpoint of step {step}, only of {', '.join(map(str, steps))}")
    chosen = steps[-1] if step is None else step
    where = root / str(chosen)
    try:
        manifest = read_manifest(root, chosen)
        here = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
        wanted = {
            name: jax.ShapeDtypeStruct(entry.shape, np.dtype(entry.dtype), sharding=here) for name, entry in manifest.arrays.items() if name.startswith(prefix)
        }
        _require_room(where, wanted)
        arrays = restore_arrays(where, wanted, manifest)
    except CorruptCheckpointError as error:
        others = f"; others are there: {', '.join(map(str, steps[:-1]))}" if steps[:-1] else ""
        raise UserError(f"{where} is damaged ({error}){others}") from None
    return manifest, {name: np.asarray(array) for name, array in arrays.items()}


def _require_room(where: Path, wanted: Mapping[str, Any]) -> None:
    """Check that arrays whose sizes only the manifest gives are not much larger than the files, which are not compressed.

    Raises:
        CorruptCheckpointError: they are.
    """
    named = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in wanted.values())
    found = sum(file.stat().st_size for file in (where / "state").rglob("*") if file.is_file())
    if named > 2 * found + (1 << 20):
        raise CorruptCheckpointError(f"its manifest names arrays of {named:,} bytes, its files have {found:,}")


def restore_arrays(where: Path, wanted: Mapping[str, Any], manifest: Manifest) -> dict[str, jax.Array]:
    """Arrays in their places, compared with their fingerprints. Of several processes, all must call it.

    Args:
        where: the directory of a step.
        wanted: jax.ShapeDtypeStruct by name, whose shardings say where the arrays go.
        manifest: of the step.

    Raises:
        CorruptCheckpointError: they cannot be read, or are not as they were written.
        UserError: they are others than those wanted.
    """
    wrong = [f"{name} is not in it" for name in wanted if name not in manifest.arrays]
    for name, leaf in wanted.items():
        found = manifest.arrays.get(name)
        if found and (found.shape, found.dtype) != (tuple(leaf.shape), str(leaf.dtype)):
            wrong.append(f"{name} is {found.dtype} {found.shape}, expected {leaf.dtype} {tuple(leaf.shape)}")
    if wrong:
        more = f" and {len(wrong) - 10} more" if len(wrong) > 10 else ""
        raise UserError(f"{where} does not fit this run: {'; '.join(wrong[:10])}{more}. Continue with the configuration that wrote it")
    args = ocp.args.PyTreeRestore(item=dict(wanted), restore_args=ocp.checkpoint_utils.construct_restore_args(dict(wanted)), partial_restore=True)
    silence()
    arrays, failure = {}, None
    try:
        # not by the CheckpointManager, whose processes wait for one another: one that cannot read its part would leave the others waiting
        arrays = ocp.PyTreeCheckpointHandler().restore(epath.Path(where / "state"), args=args)
    except Exception as error:  # Orbax raises many kinds, a bare Exception among them
        if isinstance(_origin(error), (MemoryError, jax.errors.JaxRuntimeError)):
            raise  # a machine without room says nothing of the checkpoint
        failure = reason(error)
    if failure:
        gc.collect()  # the reads that were given up are let go of now, and not while Python ends, when their last words would be an error
    if any_process("a checkpoint that cannot be read", failure is not None):
        raise CorruptCheckpointError(failure or "another process cannot read its part")
    changed = [name for name, mark in fingerprints(arrays).items() if mark != manifest.arrays[name].fingerprint]
    if changed:
        raise CorruptCheckpointError(f"{len(changed)} arrays are not as they were written, first {changed[0]}")
    return {name: arrays[name] for name in wanted}


def reason(error: Exception) -> str:
    """An exception of Orbax or of the system in a few words: the first sentence that a person can use."""
    text = " ".join(str(_origin(error)).split())
    for number, words in (("28", "no space left on the device"), ("27", "a file may not become so large"), ("122", "the quota is used up")):
        if f"os_error_code='{number}'" in text or f"[Errno {number}]" in text:
            return words
    return text if len(text) <= 200 else f"{text[:200]}..."


def _origin(error: BaseException) -> BaseException:
    """The first of a chain of exceptions."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
