"""From torch's tensors to a directory that JAX restores: `params/` (Orbax), config.json, tokenizer and processor files, manifest.json."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from flax import nnx

from unipixel_jax.config import UniPixelConfig
from unipixel_jax.core import checkpoint
from unipixel_jax.core.blocks import Blocks, KeyPath
from unipixel_jax.core.params import abstract
from unipixel_jax.models.unipixel import UniPixelModel

from .hf_config import copy_companions
from .manifest import PARAMS, Manifest, Record
from .names import canonical
from .output import new_directory, require_free
from .progress import bar
from .rules import Coverage, Rule, Shape
from .sources import EMBEDDING, Source
from .tables import all_rules
from .tensors import DTYPES, WEIGHT_DTYPES, Tensor
from .tokens import append_tokens


@dataclass(frozen=True)
class Summary:
    """What a conversion wrote, or would write.

    Attributes:
        tensors: how many torch tensors.
        arrays: how many JAX arrays.
        parameters: how many numbers.
        nbytes: bytes of the arrays.
    """

    tensors: int
    arrays: int
    parameters: int
    nbytes: int


def model_shapes(config: UniPixelConfig) -> dict[KeyPath, Shape]:
    """Path and shape of every weight of the model, of which nothing is made."""
    model = abstract(lambda rngs: UniPixelModel(config, rngs=rngs))
    return {path: leaf.get_value().shape for path, leaf in nnx.to_flat_state(nnx.state(model))}


def convert(source: Source, target: Path | None, *, force: bool = False, dry_run: bool = False) -> Summary:
    """Write a converted directory. It appears at once when it is complete, or not at all.

    A stacked array whose layers have different dtypes takes the smallest one that holds them all exactly; the manifest keeps each layer's own, so that the
    way back is exact too.

    Args:
        source: what to convert.
        target: the directory to make; None, in a dry run, to leave it unchecked.
        force: replace one that is not empty.
        dry_run: check everything, write nothing.

    Raises:
        UserError: tensors are missing, unexpected or misshapen (all are listed), or the output cannot be written.
    """
    rules = all_rules(source.config)
    shapes = model_shapes(source.config)
    where = str(source.description.get("path") or source.description.get("qwen"))
    _require_complete(source.tensors, rules, shapes, where)
    arrays = {rule.jax: (rule, _common_dtype([source.tensors[name].dtype for name in rule.torch])) for rule in rules}
    nbytes = sum(source.tensors[name].count * DTYPES[dtype].itemsize for rule, dtype in arrays.values() for name in rule.torch)
    summary = Summary(len(source.tensors), len(arrays), sum(tensor.count for tensor in source.tensors.values()), nbytes)
    if target is not None:
        require_free(target, force, source.companions)
    if target is None or dry_run:
        return summary
    checksums: dict[str, int] = {}
    with new_directory(target, force, nbytes, source.companions) as directory, bar("converting", sum(t.nbytes for t in source.tensors.values())) as advance:
        pieces = {n: Tensor(t.dtype, t.shape, partial(_checked, t, n, checksums, advance)) for n, t in source.tensors.items()}
        streams = {
            path: checkpoint.StreamedArray(shapes[path], DTYPES[dtype], tuple(pieces[name].cast(dtype).blocks for name in rule.torch))
            for path, (rule, dtype) in arrays.items()
        }
        checkpoint.save(directory / PARAMS, streams)
        (directory / "config.json").write_text(source.config_text, encoding="utf-8")
        copy_companions(source.companions, directory)
        if source.new_tokens:
            append_tokens(directory)
        _manifest(source, checksums).write(directory)
    return summary


def _require_complete(tensors: Mapping[str, Tensor], rules: list[Rule], shapes: Mapping[KeyPath, Shape], where: str) -> None:
    expected = {name: shape for rule in rules for name, shape in rule.torch_shapes(shapes[rule.jax]).items()}
    coverage = Coverage.of({name: tensor.shape for name, tensor in tensors.items()}, expected)
    no_weights = {n: (t.dtype, f"one of {', '.join(WEIGHT_DTYPES)}") for n, t in tensors.items() if n in expected and t.dtype not in WEIGHT_DTYPES}
    Coverage(coverage.missing, coverage.unexpected, {**coverage.misshapen, **no_weights}).require_complete(where)


def _common_dtype(dtypes: list[str]) -> str:
    """The smallest dtype that holds all of them exactly."""
    kinds = set(dtypes)
    if len(kinds) == 1:
        return dtypes[0]
    return "F64" if "F64" in kinds else "F32"


def _checked(tensor: Tensor, name: str, checksums: dict[str, int], advance: Callable[[int], None]) -> Blocks:
    """The tensor's bytes, while their checksum is taken."""
    checksum = 0
    for block in tensor.blocks():
        checksum = zlib.crc32(block, checksum)
        advance(len(block))
        yield block
    checksums[name] = checksum


def _manifest(source: Source, checksums: Mapping[str, int]) -> Manifest:
    """Under the source's own names where it is a checkpoint; the head that was dropped as a copy has the embedding's checksum."""
    tensors = source.weights.tensors if source.weights else source.tensors
    placed = source.weights.placed if source.weights else {}
    records = {}
    for name, tensor in tensors.items():
        checksum = checksums[EMBEDDING if name == source.tied else canonical(name)]
        records[name] = Record(tensor.dtype, tensor.shape, f"{checksum:08x}", placed.get(name))
    return Manifest(source.description, records, source.weights.files if source.weights else {}, source.tied)
