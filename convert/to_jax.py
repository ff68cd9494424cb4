"""The conversion of torch's tensors to a directory that JAX restores.

The directory holds `params/` (which Orbax reads too), config.json, tokenizer and processor files, and manifest.json.
"""

from __future__ import annotations

import json
import tempfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from unipixel_jax.config import UniPixelConfig
from unipixel_jax.core import checkpoint
from unipixel_jax.core.byte_streams import Blocks
from unipixel_jax.core.files import PARAMS
from unipixel_jax.core.params import abstract, shapes
from unipixel_jax.core.trees import KeyPath
from unipixel_jax.errors import UserError
from unipixel_jax.models.unipixel import UniPixelModel
from unipixel_jax.processing.tokenizer import Tokenizer

from .hf_config import copy_companions
from .manifest import Manifest, Record
from .names import canonical
from .output import new_directory
from .progress import bar
from .rules import Coverage, Rule, Shape
from .sources import EMBEDDING, Source
from .tables import all_rules
from .tensors import DTYPES, WEIGHT_DTYPES, Tensor
from .tokens import append_tokens


@dataclass(frozen=True)
class Summary:
    """A summary of what a conversion wrote, or would write.

    Attributes:
        tensors: number of torch tensors.
        arrays: number of JAX arrays.
        parameters: number of parameters.
        nbytes: bytes of the arrays.
    """

    tensors: int
    arrays: int
    parameters: int
    nbytes: int


def model_shapes(config: UniPixelConfig) -> dict[KeyPath, Shape]:
    """Return path and shape of every weight of the model; no weight is allocated."""
    return shapes(abstract(lambda rngs: UniPixelModel(config, rngs=rngs)))


def check(source: Source) -> Summary:
    """Compare all names, shapes and dtypes with the model's, and the token ids with the embedding; write nothing.

    Raises:
        UserError: tensors are missing, unexpected or misshapen; or there is no usable tokenizer; or a token id has no row in the embedding.
    """
    rules, shapes = all_rules(source.config), model_shapes(source.config)
    expected = {name: shape for rule in rules for name, shape in rule.torch_shapes(shapes[rule.jax]).items()}
    coverage = Coverage.of({name: tensor.shape for name, tensor in source.tensors.items()}, expected)
    weights = f"one of {', '.join(WEIGHT_DTYPES)}"
    odd = {name: (tensor.dtype, weights) for name, tensor in source.tensors.items() if name in expected and tensor.dtype not in WEIGHT_DTYPES}
    where = source.description.get("path") or source.description.get("qwen")
    Coverage(coverage.missing, coverage.unexpected, {**coverage.misshapen, **odd}).require_complete(str(where))
    _check_tokens(source)
    nbytes = sum(source.tensors[name].count * DTYPES[_common_dtype(source, rule)].itemsize for rule in rules for name in rule.torch)
    return Summary(len(source.tensors), len(rules), sum(tensor.count for tensor in source.tensors.values()), nbytes)


def convert(source: Source, target: Path, *, force: bool = False) -> Summary:
    """Write a converted directory. It appears at once when it is complete, or not at all.

    A stacked array whose layers have different dtypes gets the smallest dtype that holds them all exactly. The manifest keeps each layer's own dtype, so that
    the conversion back to torch is exact too.

    Args:
        source: the model to convert.
        target: the directory to make.
        force: replace a directory that is not empty.

    Raises:
        UserError: `check` refuses the source, or the output cannot be written.
    """
    summary = check(source)
    shapes = model_shapes(source.config)
    checksums: dict[str, int] = {}
    total = sum(tensor.nbytes for tensor in source.tensors.values())
    with new_directory(target, force, summary.nbytes, source.inputs) as directory, bar("converting", total) as advance:
        tensors = {n: Tensor(t.dtype, t.shape, partial(_checked, t, n, checksums, advance)) for n, t in source.tensors.items()}
        arrays = {rule.jax: _streamed(rule, shapes[rule.jax], tensors, _common_dtype(source, rule)) for rule in all_rules(source.config)}
        checkpoint.save(directory / PARAMS, arrays)
        (directory / "config.json").write_bytes(source.config_json)
        copy_companions(source.companions, directory)
        if source.new_tokens:
            append_tokens(directory)
        _manifest(source, checksums).write(directory)
    return summary


def _check_tokens(source: Source) -> None:
    """Read the tokenizer as the output will have it, and check that every token id has a row in the embedding."""
    rows, settings = source.tensors[EMBEDDING].shape[0], json.loads(source.config_json)
    for key, value in {**settings, **(settings.get("text_config") or {})}.items():
        beyond = [number for number in (value if isinstance(value, list) else [value]) if type(number) is int and number >= rows]
        if key.endswith("_token_id") and beyond:
            raise UserError(f"config.json has the {key} {beyond[0]}, but {EMBEDDING} has {rows} rows: expected the two of one checkpoint")
    place = str(source.companions[-1])
    if not any((directory / "tokenizer.json").is_file() for directory in source.companions):
        raise UserError(f"{place} has no tokenizer.json: copy the tokenizer files of the checkpoint there")
    with tempfile.TemporaryDirectory() as aside:
        copy_companions(source.companions, Path(aside))
        try:
            if source.new_tokens:
                append_tokens(Path(aside))
            Tokenizer.from_directory(aside).check(source.config)
        except UserError as error:
            raise UserError(str(error).replace(aside, place)) from None


def _common_dtype(source: Source, rule: Rule) -> str:
    """Return the smallest dtype that holds all of the rule's tensors exactly."""
    kinds = {source.tensors[name].dtype for name in rule.torch}
    if len(kinds) == 1:
        return kinds.pop()
    return "F64" if "F64" in kinds else "F32"


def _streamed(rule: Rule, shape: Shape, tensors: Mapping[str, Tensor], dtype: str) -> checkpoint.StreamedArray:
    return checkpoint.StreamedArray(shape, DTYPES[dtype], tuple(tensors[name].cast(dtype).blocks for name in rule.torch))


def _checked(tensor: Tensor, name: str, checksums: dict[str, int], advance: Callable[[int], None]) -> Blocks:
    """Yield the tensor's bytes, and put their checksum into `checksums` at the end."""
    checksum = 0
    for block in tensor.blocks():
        checksum = zlib.crc32(block, checksum)
        advance(len(block))
        yield block
    checksums[name] = checksum


def _manifest(source: Source, checksums: Mapping[str, int]) -> Manifest:
    """Return the manifest, under the source's own names where it is a checkpoint. A tied head, which was left out, has the embedding's checksum."""
    tensors = source.weights.tensors if source.weights else source.tensors
    placed = source.weights.placed if source.weights else {}
    records = {}
    for name, tensor in tensors.items():
        checksum = checksums[EMBEDDING if name == source.tied else canonical(name)]
        records[name] = Record(tensor.dtype, tensor.shape, f"{checksum:08x}", placed.get(name))
    return Manifest(source.description, records, source.weights.files if source.weights else {}, source.tied)
