"""A directory's or file's tensors, whichever of the usual formats they are in. Only headers are read."""

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
        tensors: by name, in file order.
        files: safetensors file to its metadata; empty where the weights are pickles, which are never written.
        placed: name to file.
    """

    tensors: dict[str, Tensor]
    files: dict[str, dict[str, str]] = field(default_factory=dict)
    placed: dict[str, str] = field(default_factory=dict)


def read_file(path: Path) -> dict[str, Tensor]:
    """The tensors of one file, safetensors or torch's own format.

    Raises:
        UserError: missing, damaged, or something else.
    """
    require_regular_file(path, "expected a safetensors or torch file")
    tensors: dict[str, Tensor] = {}
    _add(tensors, read_safetensors(path).tensors if path.suffix == ".safetensors" else read_torch(path), path)
    return tensors


def read_weights(directory: Path) -> Weights:
    """A whole model's weights: `model.safetensors`, its shards, or torch's `pytorch_model.bin` and its shards.

    Raises:
        UserError: none of these, or a damaged or incomplete one.
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
    """Add a file's tensors to those of other files."""
    twice = sorted(shard.keys() & tensors.keys())
    require_printable(shard, where)
    if twice:
        raise UserError(f"{where} repeats {len(twice)} tensors of another shard: {', '.join(twice[:20])}; copy the checkpoint again")
    tensors.update(shard)
