"""From a converted directory back to a torch checkpoint that the reference loads: the same names, dtypes, bytes and files."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from unipixel_jax.core import checkpoint
from unipixel_jax.core.blocks import Blocks, KeyPath
from unipixel_jax.errors import UserError

from .hf_config import copy_companions, read_config
from .manifest import NAME, PARAMS, Manifest
from .names import canonical
from .output import new_directory
from .progress import bar
from .rules import Coverage
from .safetensors_io import plan_shards, write_shards
from .sources import EMBEDDING
from .tables import all_rules
from .tensors import CODES, Tensor

SHARD_BYTES = 5_000_000_000
"""Largest file of a checkpoint whose source had no files of its own; transformers' default."""


def convert(source: Path, target: Path, *, force: bool = False, shard_bytes: int = SHARD_BYTES) -> int:
    """Write a torch checkpoint, one tensor at a time.

    Args:
        source: a converted directory.
        target: the directory to make.
        force: replace one that is not empty.
        shard_bytes: largest file, where the manifest does not say which files there were.

    Returns:
        How many tensors were written.

    Raises:
        UserError: no converted directory, arrays that its config.json does not ask for, bytes that changed since the conversion, or an output that cannot be
            written.
    """
    manifest = Manifest.read(source)
    tensors = _tensors(source, manifest)
    nbytes = sum(tensor.nbytes for tensor in tensors.values())
    with new_directory(target, force, nbytes, [source]) as directory, bar("converting", nbytes) as advance:
        checked = {name: _checked(name, tensor, manifest, source, advance) for name, tensor in tensors.items()}
        write_shards(directory, checked, _layout(manifest, tensors, shard_bytes), manifest.files)
        (directory / "config.json").write_bytes((source / "config.json").read_bytes())
        copy_companions([source], directory)
    return len(tensors)


def _tensors(source: Path, manifest: Manifest) -> dict[str, Tensor]:
    """Every torch tensor under the name it had, in the dtype it had."""
    _, config = read_config(source)
    stored = checkpoint.read(source / PARAMS)
    rules = all_rules(config)
    found = {_dotted(path): array.shape for path, array in stored.items()}
    Coverage.of(found, dict.fromkeys(_dotted(rule.jax) for rule in rules)).require_complete(str(source))
    own = {canonical(name): name for name in manifest.tensors if name != manifest.tied}
    if own:
        Coverage.of(dict.fromkeys(own, ()), dict.fromkeys(name for rule in rules for name in rule.torch)).require_complete(str(source / NAME))
    tensors = {}
    for rule in rules:
        array = stored[rule.jax]
        shapes = rule.torch_shapes(array.shape)
        for index, name in enumerate(rule.torch):
            tensor = Tensor(CODES[array.dtype], shapes[name], partial(array.blocks, index if rule.stacked else None))
            record = manifest.tensors.get(own.get(name, name))
            tensors[own.get(name, name)] = tensor.cast(record.dtype) if record else tensor
    if manifest.tied:
        tensors[manifest.tied] = tensors[own.get(EMBEDDING, EMBEDDING)]
    return {name: tensors[name] for name in (*manifest.tensors, *tensors) if name in tensors}


def _layout(manifest: Manifest, tensors: Mapping[str, Tensor], shard_bytes: int) -> dict[str, list[str]]:
    """Which tensors go to which file: as they lay in the source, or cut into shards."""
    if not manifest.files:
        return plan_shards({name: tensor.nbytes for name, tensor in tensors.items()}, shard_bytes)
    return {file: [name for name in tensors if manifest.tensors[name].file == file] for file in manifest.files}


def _checked(name: str, tensor: Tensor, manifest: Manifest, source: Path, advance: Callable[[int], None]) -> Tensor:
    """The tensor, with its checksum compared to the manifest's after its last block."""

    def blocks() -> Blocks:
        checksum = 0
        for block in tensor.blocks():
            checksum = zlib.crc32(block, checksum)
            advance(len(block))
            yield block
        record = manifest.tensors.get(name)
        if record and record.crc32 != f"{checksum:08x}":
            raise UserError(f"{source}: {name} has changed since it was converted ({checksum:08x}, expected {record.crc32}); convert the checkpoint again")

    return Tensor(tensor.dtype, tensor.shape, blocks)


def _dotted(path: KeyPath) -> str:
    return ".".join(map(str, path))
