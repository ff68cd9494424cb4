"""A loaded model as a converted directory with a model card."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import cast

import jax
import numpy as np
from flax import nnx

from unipixel_jax.config import UniPixelConfig
from unipixel_jax.convert import to_jax
from unipixel_jax.convert.manifest import Manifest
from unipixel_jax.convert.output import new_directory
from unipixel_jax.convert.rules import Rule
from unipixel_jax.convert.sources import Source
from unipixel_jax.convert.tables import all_rules
from unipixel_jax.convert.tensors import CODES, Tensor
from unipixel_jax.core.trees import KeyPath
from unipixel_jax.errors import UserError
from unipixel_jax.models.quantised import require_full
from unipixel_jax.models.unipixel import UniPixelModel

from .card import CARD, ORIGIN, model_card

BLOCKS = "blocks"
"""The name of a tower's layers in the paths of its weights."""


def save(model: UniPixelModel, config: UniPixelConfig, start: Path | None, target: Path) -> None:
    """Write a model as a converted directory with a model card. It appears at once when it is complete, or not at all.

    Args:
        model: the model, its towers stacked or not; all of its arrays lie on devices of this process.
        config: its configuration.
        start: the converted directory that it was read from, whose other files are copied.
        target: the directory to make.

    Raises:
        UserError: there is no such directory any more, or the target cannot be written, has too little room or is not empty.
    """
    if start is None or not start.is_dir():
        raise UserError(f"the model comes from {start or 'no directory'}, so the tokenizer files beside its weights are missing: load it with from_pretrained")
    if target.is_dir() and any(target.iterdir()):
        raise UserError(f"{target} exists and is not empty: choose another directory")
    require_full(config, "this model", "saving")
    tensors = _tensors(model, config)
    origin = {key: value for key, value in Manifest.read(start).source.items() if key in ORIGIN}
    description = {"kind": "saved", "path": start.name, **origin}
    source = Source(config, (start / "config.json").read_bytes(), tensors, (start,), (start,), description)
    with new_directory(target, False, sum(tensor.nbytes for tensor in tensors.values()), [start]) as directory:
        to_jax.convert(source, directory)
        (directory / CARD).write_text(model_card(source, target.name), encoding="utf-8")


def _tensors(model: UniPixelModel, config: UniPixelConfig) -> dict[str, Tensor]:
    """Return the model's weights as torch's tensors under canonical names; each is copied from its device when it is read."""
    arrays = {cast(KeyPath, path): leaf.get_value() for path, leaf in nnx.to_flat_state(nnx.state(model))}
    tensors = {}
    for rule in all_rules(config):
        for name, layer in zip(rule.torch, _layers(rule, arrays), strict=True):
            dtype, shape, read = layer
            tensors[name] = Tensor.computed(CODES[dtype], rule.torch_shape(shape), read)
    return tensors


def _layers(rule: Rule, arrays: dict[KeyPath, jax.Array]) -> Iterator[tuple[np.dtype, tuple[int, ...], Callable[[], np.ndarray]]]:
    """Yield dtype, shape and values of each array that a rule names one torch tensor for: the layers of a tower, stacked or not, or a single array."""
    for index in range(len(rule.torch)):
        if rule.jax in arrays:
            array = arrays[rule.jax]
            shape = array.shape[1:] if rule.stacked else array.shape
            yield np.dtype(array.dtype), shape, partial(_read, array, index if rule.stacked else None)
        else:
            cut = rule.jax.index(BLOCKS) + 1
            array = arrays[(*rule.jax[:cut], index, *rule.jax[cut:])]
            yield np.dtype(array.dtype), array.shape, partial(_read, array, None)


def _read(array: jax.Array, index: int | None) -> np.ndarray:
    return np.asarray(array if index is None else array[index])
