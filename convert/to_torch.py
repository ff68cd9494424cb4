"""The conversion of a converted directory back to a torch checkpoint that the reference loads, with the names, dtypes, bytes and files of the source."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from unipixel_jax.core.byte_streams import Blocks

from .converted import read_converted
from .hf_config import copy_companions, read_config
from .manifest import Manifest
from .names import canonical
from .output import new_directory
from .progress import bar
from .safetensors_io import plan_shards, write_shards
from .sources import EMBEDDING, Source
from .tensors import Tensor

SHARD_BYTES = 5_000_000_000
"""The most bytes of a file, where the source does not say which files there are; transformers' default."""


def convert(source: Path, target: Path, *, force: bool = False, shard_bytes: int = SHARD_BYTES) -> int:
    """Write a torch checkpoint, one tensor at a time.

    Args:
        source: a converted directory.
        target: the directory to make.
        force: replace a directory that is not empty.
        shard_bytes: the most bytes of a file, where the manifest does not say which files there were.

    Returns:
        How many tensors were written.

    Raises:
        UserError: the source is no converted directory, has arrays that its config.json does not ask for, or has changed since it was converted; or the output
            cannot be written.
    """
    manifest = Manifest.read(source)
    tensors = _tensors(source, manifest)
    nbytes = sum(tensor.nbytes for tensor in tensors.values())
    with new_directory(target, force, nbytes, [source]) as directory, bar("converting", nbytes) as advance:
        counted = {name: _counted(tensor, advance) for name, tensor in tensors.items()}
        write_shards(directory, counted, _layout(manifest, tensors, shard_bytes), manifest.files)
        (directory / "config.json").write_bytes((source / "config.json").read_bytes())
        copy_companions([source], directory)
    return len(tensors)


def write(source: Source, target: Path, *, force: bool = False, shard_bytes: int = SHARD_BYTES) -> int:
    """Write a whole model as a torch checkpoint in the layout of a saved UniPixel, one tensor at a time.

    Args:
        source: the model to write.
        target: the directory to make.
        force: replace a directory that is not empty.
        shard_bytes: the most bytes of a file.

    Returns:
        How many tensors were written.

    Raises:
        UserError: the output cannot be written.
    """
    nbytes = sum(tensor.nbytes for tensor in source.tensors.values())
    with new_directory(target, force, nbytes, source.inputs) as directory, bar("writing", nbytes) as advance:
        counted = {name: _counted(tensor, advance) for name, tensor in source.tensors.items()}
        write_shards(directory, counted, plan_shards({name: tensor.nbytes for name, tensor in counted.items()}, shard_bytes), {})
        (directory / "config.json").write_bytes(source.config_json)
        copy_companions(source.companions, directory)
    return len(source.tensors)


def _tensors(source: Path, manifest: Manifest) -> dict[str, Tensor]:
    """Return every torch tensor under the name, in the dtype and in the order that it had in the source."""
    _, config = read_config(source)
    own = {canonical(name): name for name in manifest.tensors if name != manifest.tied}
    tensors = {own.get(name, name): tensor for name, tensor in read_converted(source, config, manifest).items()}
    if manifest.tied:
        tensors[manifest.tied] = tensors[own.get(EMBEDDING, EMBEDDING)]
    return {name: tensors[name] for name in (*manifest.tensors, *tensors) if name in tensors}


def _layout(manifest: Manifest, tensors: Mapping[str, Tensor], shard_bytes: int) -> dict[str, list[str]]:
    """Return the names of the tensors of each file: as they lay in the source, or else divided into shards."""
    if not manifest.files:
        return plan_shards({name: tensor.nbytes for name, tensor in tensors.items()}, shard_bytes)
    return {file: [name for name in tensors if manifest.tensors[name].file == file] for file in manifest.files}


def _counted(tensor: Tensor, advance: Callable[[int], None]) -> Tensor:
    """Return the tensor, which calls `advance` with the bytes of each block that is read."""

    def blocks() -> Blocks:
        for block in tensor.blocks():
            yield block
            advance(len(block))

    return Tensor(tensor.dtype, tensor.shape, blocks)
