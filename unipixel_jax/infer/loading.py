"""A converted directory in memory."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from unipixel_jax.config import UniPixelConfig
from unipixel_jax.core.checkpoint import restore_model
from unipixel_jax.core.files import PARAMS
from unipixel_jax.core.stored import has_arrays
from unipixel_jax.errors import UserError
from unipixel_jax.models.partition import partitioned
from unipixel_jax.models.unipixel import UniPixelModel, abstract_model, unstack_towers
from unipixel_jax.processing.tokenizer import Tokenizer

EMBEDDED = Path(__file__).parent.parent / "assets" / "shapes_tiny"
"""The small model that ships with the package: it knows coloured shapes and nothing else (docs/tiny_model.md)."""


@dataclass(frozen=True)
class LoadedModel:
    """Attributes:
    model: the weights, on the device.
    config: their sizes.
    tokenizer: read from the same directory.
    end_tokens: tokens that end an answer; the directory's generation_config.json says which.
    mesh: the chips that share the work; None for one.
    """

    model: UniPixelModel
    config: UniPixelConfig
    tokenizer: Tokenizer
    end_tokens: tuple[int, ...]
    mesh: Mesh | None = None

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of the weights, in which inference computes."""
        return jnp.dtype(self.model.text.embed.weight[...].dtype)

    def on_mesh(self) -> AbstractContextManager[Any]:
        """The context in which its programs are called: that of its mesh, if it has one."""
        return nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)

    def for_inference(self) -> LoadedModel:
        """The same model in the form in which it runs fastest here: on a CPU its towers are unstacked (see core/stacking.py).

        The stacked arrays are given up one by one, so that the model is never in memory twice.
        """
        if jax.default_backend() == "cpu":
            unstack_towers(self.model)
        return self


def load(directory: str | Path, dtype: Any = None, mesh: Mesh | None = None) -> LoadedModel:
    """Read a directory that ``unipixel-jax convert to-jax`` wrote.

    Args:
        directory: with params/, config.json, manifest.json and the tokenizer.
        dtype: cast all weights to this; None keeps each one's own.
        mesh: chips over which the weights are divided, each part read into its place; None puts all on the default device.

    Raises:
        UserError: heads that do not divide along the mesh, or not such a directory; for a torch checkpoint the message holds the command that converts it.
    """
    root = Path(directory)
    if not root.is_dir():
        raise UserError(f"{root} does not exist; expected a directory made by: unipixel-jax convert to-jax CHECKPOINT {root}")
    if not has_arrays(root / PARAMS):
        if any(root.glob("*.safetensors")) or any(root.glob("pytorch_model*.bin")):
            raise UserError(f"{root} is a torch checkpoint; convert it once with: unipixel-jax convert to-jax {root} {root.name}-jax")
        raise UserError(f"{root} holds no {PARAMS}/; expected a directory made by: unipixel-jax convert to-jax CHECKPOINT DIRECTORY")
    config = UniPixelConfig.from_hf(_read_json(root / "config.json"))
    tokenizer = Tokenizer.from_directory(root)
    tokenizer.check(config)
    model = abstract_model(config)
    model = restore_model(root / PARAMS, model if mesh is None else partitioned(model, config, mesh), dtype)
    return LoadedModel(model, config, tokenizer, _end_tokens(root), mesh)


def _end_tokens(root: Path) -> tuple[int, ...]:
    """What transformers would stop at: generation_config.json's ``eos_token_id``, a number or a list."""
    path = root / "generation_config.json"
    ends = (_read_json(path) if path.is_file() else _read_json(root / "config.json")).get("eos_token_id")
    return () if ends is None else tuple(ends) if isinstance(ends, list) else (int(ends),)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: the directory is incomplete, convert the checkpoint again") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): convert the checkpoint again") from None
