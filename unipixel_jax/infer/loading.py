"""Reads a converted directory into memory."""

from __future__ import annotations

import reprlib
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from unipixel_jax.config import UniPixelConfig
from unipixel_jax.core.checkpoint import restore_model
from unipixel_jax.core.files import PARAMS, read_json_object
from unipixel_jax.core.programs import packed
from unipixel_jax.core.quantisation import Quantisation
from unipixel_jax.core.stacking import unstack_layers
from unipixel_jax.core.stored import has_arrays
from unipixel_jax.errors import UserError
from unipixel_jax.models.partition import partitioned
from unipixel_jax.models.quantised import quantised_config
from unipixel_jax.models.unipixel import UniPixelModel, abstract_model, unstack_towers
from unipixel_jax.processing.tokenizer import Tokenizer

EMBEDDED = Path(__file__).parent.parent / "assets" / "shapes_tiny"
"""The small model that ships with the package: it knows coloured shapes and nothing else (docs/tiny_model.md)."""


_ADVICE = "convert the checkpoint again"


@dataclass(frozen=True)
class LoadedModel:
    """A model with everything that inference needs.

    Attributes:
        model: the weights, on the device or sharded over the mesh.
        config: the model's sizes and token ids.
        tokenizer: the tokenizer of the same directory.
        end_tokens: tokens that end an answer, at least one (see ``end_tokens``).
        mesh: the devices that share the work; None for one.
        directory: where it was read from; None for a model that was made otherwise.
    """

    model: UniPixelModel
    config: UniPixelConfig
    tokenizer: Tokenizer
    end_tokens: tuple[int, ...]
    mesh: Mesh | None = None
    directory: Path | None = None

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of the weights that are not quantised, in which inference computes."""
        return jnp.dtype(self.model.text.norm.weight[...].dtype)

    @cached_property
    def packed(self) -> UniPixelModel:
        """What stands for the model in calls of programs (see core/programs.py). The model must have its final form by then."""
        return packed(self.model)

    def on_mesh(self) -> AbstractContextManager[Any]:
        """The context in which the model's programs are called: that of its mesh, if it has one."""
        return nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)

    def for_inference(self) -> LoadedModel:
        """The same model in the form in which it runs fastest here (see core/stacking.py): on a CPU its towers are unstacked, and on a GPU its language model,
        whose layers a scan copies before it multiplies.

        The stacked arrays are given up one by one, so that the model is never in memory twice.
        """
        if jax.default_backend() == "cpu":
            unstack_towers(self.model)
        elif jax.default_backend() == "gpu":
            unstack_layers(self.model.text)
        return self


def load(directory: str | Path, dtype: Any = None, mesh: Mesh | None = None, how: Quantisation | None = None, int8_activations: bool = False) -> LoadedModel:
    """Read a directory that ``unipixel-jax convert to-jax`` wrote.

    Args:
        directory: the directory, with params/, config.json, manifest.json and the tokenizer.
        dtype: the dtype to cast all weights to; None keeps each weight's own.
        mesh: devices over which the weights are sharded, each shard read straight onto its device; None puts all weights on the default device.
        how: how the language model's weights are quantised while they are read; None reads them as they are, quantised or not.
        int8_activations: whether products with quantised weights round their inputs to int8 too (core/quantisation.py).

    Raises:
        UserError: the mesh does not divide the heads, or it is no such directory; for a torch checkpoint the message holds the command that converts it. Or the
            directory's weights are quantised and are to be quantised again, or are not and activations are to be int8.
    """
    root = Path(directory)
    if not root.is_dir():
        raise UserError(f"{root} does not exist; expected a directory made by: unipixel-jax convert to-jax CHECKPOINT {root}")
    if not has_arrays(root / PARAMS):
        if any(root.glob("*.safetensors")) or any(root.glob("pytorch_model*.bin")):
            raise UserError(f"{root} is a torch checkpoint; convert it once with: unipixel-jax convert to-jax {root} {root.name}-jax")
        raise UserError(f"{root} holds no {PARAMS}/; expected a directory made by: unipixel-jax convert to-jax CHECKPOINT DIRECTORY")
    config = UniPixelConfig.from_directory(root)
    tokenizer = Tokenizer.from_directory(root)
    tokenizer.check(config)
    ends = end_tokens(root, config, tokenizer)
    config = quantised_config(config, how, root)
    if int8_activations:
        if config.quantisation is None:
            raise UserError(f"{root} holds full weights, whose products take full activations: quantise the weights too (int8)")
        config = replace(config, quantisation=config.quantisation.with_int8_activations())
    model = abstract_model(config)
    model = restore_model(root / PARAMS, model if mesh is None else partitioned(model, config, mesh), dtype, how)
    return LoadedModel(model, config, tokenizer, ends, mesh, root)


def end_tokens(root: Path, config: UniPixelConfig, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The tokens that end an answer.

    They are ``eos_token_id``, a number or a list, of generation_config.json, else of config.json, else of its text_config (the order of transformers'
    ``GenerationConfig.from_model_config``), else the end token of the tokenizer.

    Args:
        root: the directory of generation_config.json and config.json.
        config: what its config.json holds.
        tokenizer: the tokenizer of the same directory.

    Raises:
        UserError: the file names something that is no token of the model, which would let answers go on for ever.
    """
    raw = read_json_object(root / "config.json", _ADVICE)
    path = root / "generation_config.json"
    own = read_json_object(path, _ADVICE) if path.is_file() else {}
    places = ((path, own), (root / "config.json", raw), (f"{root / 'config.json'} (text_config)", raw.get("text_config") or {}))
    where, found = next(((where, values["eos_token_id"]) for where, values in places if values.get("eos_token_id") is not None), (None, tokenizer.eos_id))
    ends = tuple(found) if isinstance(found, list) else (found,)
    if not ends or not all(type(end) is int and 0 <= end < config.text.vocab_size for end in ends):
        raise UserError(f"{where} has the eos_token_id {reprlib.repr(found)}, expected ids of tokens below {config.text.vocab_size}: {_ADVICE}")
    return ends
