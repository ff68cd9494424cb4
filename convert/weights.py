"""Readers of a directory's or a file's tensors in any of the usual formats. Only headers are read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from unipixel_jax.core.files import require_regular_file
from unipixel_jax.errors import UserError

from .names import require_printable
from .safetensors_io import INDEX, SINGLE, read_index, read_safetensors
from .tensors import Tensor
from .torch_pickle import read_torch


@dataclass(frozen=True)
class Weights:
    """The weights of one directory, under the names that they have there.

    Attributes:
        tensors: the tensors by name, in the order of the files.
        files: the metadata of each safetensors file, by file name; empty where the weights are pickles, which are never written.
        placed: the file name of each tensor, by the tensor's name.
    """

    tensors: dict[str, Tensor]
    files: dict[str, dict[str, str]] = field(default_factory=dict)
    placed: dict[str, str] = field(default_factory=dict)


def read_file(path: Path) -> dict[str, Tensor]:
    """Return the tensors of one file, in the safetensors format or torch's own.

    Raises:
        UserError: the file is missing, damaged, or of another format.
    """
    require_regular_file(path, "expected a safetensors or torch file")
    tensors: dict[str, Tensor] = {}
    _add(tensors, read_safetensors(path).tensors if path.suffix == ".safetensors" else read_torch(path), path)
    return tensors


def read_weights(directory: Path) -> Weights:
    """Return a whole model's weights, from `model.safetensors` or its shards, or from torch's `pytorch_model.bin` or its shards.

    Raises:
        UserError: none of these is there, or one is damaged or incomplete.
    """
    if (directory / SINGLE).is_file():
        return _read_shards(directory, [SINGLE])
    if (directory / INDEX).is_file():
        return _read_shards(directory, read_index(directory / INDEX))
    if (directory / "pytorch_model.bin").is_file():
        return Weights(read_file(directory / "pytorch_model.bin"))
    if (directory / "pytorch_model.bin.index.json").is_file():
        tensors: dict[str, Tensor] = {}
        for name in read_index(directory / "pytorch_model.bin.index.json", ".bin"):
            _add(tensors, read_torch(directory / name), directory / name)
        return Weights(tensors)
    raise UserError(f"{directory} has no weights (model.safetensors, its index and shards, or pytorch_model.bin); copy the checkpoint again")


def _read_shards(directory: Path, names: Iterable[str]) -> Weights:
    weights = Weights({})
    for name in names:
        shard = read_safetensors(directory / name)
        if not shard.tensors:
            raise UserError(f"{directory / name} holds no tensors; copy the checkpoint again")
        _add(weights.tensors, shard.tensors, directory / name)
        weights.files[name] = shard.metadata
        weights.placed.update(dict.fromkeys(shard.tensors, name))
    return weights


def _add(tensors: dict[str, Tensor], shard: dict[str, Tensor], where: Path) -> None:
    """Add a file's tensors to those of other files, none of which may have the same name."""
    twice = sorted(shard.keys() & tensors.keys())
    require_printable(shard, where)
    if twice:
        raise UserError(f"{where} repeats {len(twice)} tensors of another shard: {', '.join(twice[:20])}; copy the checkpoint again")
    tensors.update(shard)
