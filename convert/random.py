"""A model with random weights as a source of a conversion, for training from scratch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import numpy as np
from flax import nnx

from unipixel_jax.config import UniPixelConfig
from unipixel_jax.core.trees import KeyPath
from unipixel_jax.models.unipixel import UniPixelModel
from unipixel_jax.processing.tokenizer import Tokenizer

from .sources import Source
from .trained import torch_tensors


def random_source(config: UniPixelConfig, tokenizer: Path, seed: int) -> Source:
    """Return a model whose weights are drawn by its own initialisers.

    Args:
        config: the model's sizes; weights are in bfloat16 if its dtype is that, and else in float32.
        tokenizer: a folder with the tokenizer files of the model.
        seed: seed of the random weights.

    Raises:
        UserError: there is no tokenizer in the folder.
    """
    model = UniPixelModel(config, nnx.Rngs(seed))
    arrays = {cast(KeyPath, path): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(nnx.state(model))}
    dtype = "BF16" if config.dtype == "bfloat16" else "F32"
    tensors = {name: tensor.cast(dtype) for name, tensor in torch_tensors(config, arrays, tokenizer).items()}
    description = {"kind": "random", "path": f"random weights of seed {seed}", "seed": seed}
    settings = config.to_hf() | {"eos_token_id": Tokenizer.from_directory(tokenizer).eos_id}
    return Source(config, (json.dumps(settings, indent=1) + "\n").encode(), tensors, (tokenizer,), (tokenizer,), description)
