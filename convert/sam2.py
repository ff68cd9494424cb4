"""SAM 2.1 on its own, read from an official file straight into our model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from unipixel_jax.config import Sam2Config, read_sam2
from unipixel_jax.core.files import read_json_object
from unipixel_jax.core.params import abstract, filled, shapes
from unipixel_jax.errors import UserError
from unipixel_jax.models.sam2.tracker import Sam2

from .fresh import sam2_sizes, sam2_tensors
from .rules import Coverage, Rule
from .tables.sam2 import sam2_rules
from .tensors import WEIGHT_DTYPES, Tensor
from .weights import read_file

PREFIX = "sam2"
"""The first part of the paths that SAM 2's weights have in the whole model."""
IMAGE_SIZE = 1024
"""The side in pixels of the square image in all published configurations (the reference's sam2/configs/sam2.1)."""
NEW = "sam2.no_obj_embed_spatial"
"""A weight that SAM 2.1 has and SAM 2 had not."""


def read_official(file: Path, dtype: DTypeLike, image_size: int | None = None) -> Sam2:
    """Read a file as the reference publishes it: a dictionary of tensors under the key ``model``.

    The size is that of ``sam2_model`` in a config.json beside the file, or else one of the four published sizes, which are told apart by their weights.

    Args:
        file: the file, of torch or of safetensors.
        dtype: the dtype of the weights, in which the model computes.
        image_size: side of the square image in pixels; None for that of the configuration, 1024 in the published ones.

    Raises:
        UserError: the file is damaged, holds something else, or is of no known size.
    """
    tensors = sam2_tensors(read_file(file))
    config = official_sizes(file, tensors)
    config = config if image_size is None else replace(config, image_size=image_size)
    model = abstract(lambda rngs: Sam2(config, rngs))
    expected = {(PREFIX, *path): shape for path, shape in shapes(model).items()}
    rules = sam2_rules(config)
    _require_complete(file, tensors, {name: shape for rule in rules for name, shape in rule.torch_shapes(expected[rule.jax]).items()})
    return filled(model, {rule.jax[1:]: _array(rule, expected[rule.jax], tensors, dtype) for rule in rules})


def official_sizes(file: Path, tensors: dict[str, Tensor]) -> Sam2Config:
    """Return the sizes of the model in a file, whose tensors have UniPixel's names.

    Raises:
        UserError: the size is none of the four published ones, and no config.json beside the file describes it.
    """
    described = file.parent / "config.json"
    raw = read_json_object(described) if described.is_file() else {}
    return read_sam2(raw) if "sam2_model" in raw else sam2_sizes(None, tensors, IMAGE_SIZE, file)


def _require_complete(file: Path, tensors: dict[str, Tensor], expected: dict[str, tuple[int, ...]]) -> None:
    if NEW in expected.keys() - tensors.keys():
        raise UserError(f"{file} lacks {NEW.removeprefix('sam2.')}, so it is of SAM 2 and not of SAM 2.1: expected sam2.1_hiera_*.pt")
    coverage = Coverage.of({name: tensor.shape for name, tensor in tensors.items()}, expected)
    odd = {name: (tensor.dtype, f"one of {', '.join(WEIGHT_DTYPES)}") for name, tensor in tensors.items() if tensor.dtype not in WEIGHT_DTYPES}
    Coverage(coverage.missing, coverage.unexpected, {**coverage.misshapen, **odd}).require_complete(str(file))


def _array(rule: Rule, shape: tuple[int, ...], tensors: dict[str, Tensor], dtype: DTypeLike) -> jax.Array:
    """Return one array of the model, made of one tensor or of a stack of them."""
    out = np.empty(shape, jnp.dtype(dtype))
    for part, name in zip(out if rule.stacked else [out], rule.torch, strict=True):
        part[...] = tensors[name].load().reshape(part.shape)
    return jax.device_put(out)
