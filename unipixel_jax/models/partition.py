"""The sharding of UniPixel's weights.

Along ``fsdp`` and ``context`` together every matrix is sharded. It is all-gathered where it is used, except for the tables of the vocabulary, which are never
all-gathered (ops/vocabulary.py). Along ``tensor`` only the language model is sharded, by heads, feed-forward columns and vocabulary (Megatron-LM,
arXiv 1909.08053). The other towers shard their images along ``tensor`` instead of their weights, since the weights are small and the images many.
"""

from __future__ import annotations

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from unipixel_jax.config import UniPixelConfig
from unipixel_jax.core.axes import EMBED, HEADS, KV_HEADS, LAYERS, MLP, PATCH, VOCAB
from unipixel_jax.core.mesh import TENSOR, WEIGHTS
from unipixel_jax.core.quantisation import keeps_dtype
from unipixel_jax.core.sharding import SHARDED, WHOLE, Rules
from unipixel_jax.core.stacking import is_variable
from unipixel_jax.core.trees import key_path
from unipixel_jax.errors import UserError

M = TypeVar("M", bound=nnx.Module)

ELSEWHERE = Rules({WEIGHTS: (EMBED, MLP, HEADS, PATCH)})
"""The rules for the weights of all towers but the language model."""
TABLES = Rules({WEIGHTS: (VOCAB, EMBED), (TENSOR,): (VOCAB,)}, (VOCAB,))
"""The rules for tables with a row for each token."""


def text_rules(config: UniPixelConfig) -> Rules:
    """Return the rules for the language model, except for its tables. Key heads that do not divide are replicated (ops/attention/sharded.py)."""
    text = config.text
    return Rules(
        {WEIGHTS: (EMBED, MLP, HEADS, KV_HEADS), (TENSOR,): (MLP, HEADS, KV_HEADS)},
        units={HEADS: text.num_attention_heads, KV_HEADS: text.num_key_value_heads},
    )


def partitioned(model: M, config: UniPixelConfig, mesh: Mesh | AbstractMesh, dtype: jnp.dtype | None = None) -> M:
    """Return an abstract model with a sharding for each weight.

    Args:
        model: an abstract model, from ``abstract_model``, with adapters or without.
        config: the model's configuration.
        mesh: the devices.
        dtype: the dtype of all weights but quantised ones and their scales; None keeps their own.

    Raises:
        UserError: the language model's heads cannot be sharded along ``tensor``.
    """
    text = text_rules(config)
    check_heads(config, mesh)

    def place(path: tuple[Any, ...], variable: nnx.Variable) -> nnx.Variable:
        value: Any = variable.get_value()
        axes = variable.get_metadata()["axes"]
        rules = TABLES if VOCAB in axes else text if getattr(path[0], "name", getattr(path[0], "key", None)) == "text" else ELSEWHERE
        spec = rules.spec(axes, value.shape, mesh)
        own = [spec[i] if i < len(spec) else None for i, name in enumerate(axes) if name != LAYERS]
        whole = [None if entry in WEIGHTS or entry == WEIGHTS else entry for entry in own]
        own_dtype = value.dtype if dtype is None or keeps_dtype(key_path(path), value.dtype) else dtype
        placed = variable.replace(jax.ShapeDtypeStruct(value.shape, own_dtype, sharding=NamedSharding(mesh, spec)))
        if rules is not TABLES:
            placed.set_metadata(**{WHOLE: tuple(whole), SHARDED: tuple(own)})
        return placed

    return jax.tree_util.tree_map_with_path(place, model, is_leaf=is_variable)


def check_heads(config: UniPixelConfig, mesh: Mesh | AbstractMesh) -> None:
    """Check that the language model's heads can be sharded along ``tensor``.

    Raises:
        UserError: the number of query or key heads does not allow that.
    """
    size, text = mesh.shape[TENSOR], config.text
    heads, keys = text.num_attention_heads, text.num_key_value_heads
    if size > 1 and size not in (possible := tensor_sizes(config, heads)):
        raise UserError(f"mesh.tensor is {size}, which does not divide {heads} query heads and {keys} key heads: choose one of {possible}")


def tensor_sizes(config: UniPixelConfig, most: int) -> list[int]:
    """Return the numbers of devices, from 2 to ``most``, that can share the language model's heads; beyond the number of key heads, each is held by several."""
    heads, keys = config.text.num_attention_heads, config.text.num_key_value_heads
    return [n for n in range(2, min(most, heads) + 1) if heads % n == 0 and (keys % n == 0 or n % keys == 0)]
