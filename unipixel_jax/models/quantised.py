"""The language model with quantised weights, for inference (core/quantisation.py says which, and how).

V vocabulary, D width, G groups of g neighbouring weights.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from unipixel_jax.config import UniPixelConfig
from unipixel_jax.core.axes import Axes
from unipixel_jax.core.quantisation import BITS, Quantisation
from unipixel_jax.errors import UserError
from unipixel_jax.models.layers import Linear
from unipixel_jax.models.qwen_vl.text import Embedding, TextModel
from unipixel_jax.ops.dense import quantised_dense

DTYPES = {name: jnp.dtype(name) for name in BITS}


class QuantisedLinear(Linear):
    """A linear layer whose weight is whole numbers with scales: ``x @ (scales * weight).T + bias``.

    Attributes:
        weight: [out, in], or [G, g, out] in groups (``ops/dense.py:quantised_dense``).
        scales: [out] in float32, or [G, out] in bfloat16.
        bias: [out], or None.
    """

    def __init__(self, base: Linear, how: Quantisation) -> None:
        shape, axes = base.weight.get_value().shape, base.weight.get_metadata()["axes"]
        stack, (d_out, d_in), over, (out, inner) = shape[:-2], shape[-2:], axes[:-2], axes[-2:]
        if how.group is None:
            self.weight = _abstract((*stack, d_out, d_in), (*over, out, inner), DTYPES[how.weights])
            self.scales = _abstract((*stack, d_out), (*over, out), jnp.dtype("float32"))
        else:
            groups = d_in // how.group
            self.weight = _abstract((*stack, groups, how.group, d_out), (*over, inner, None, out), DTYPES[how.weights])
            self.scales = _abstract((*stack, groups, d_out), (*over, inner, out), jnp.dtype("bfloat16"))
        self.bias = base.bias
        self.int8_activations = how.int8_activations

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map x [..., in] to [..., out] in x's dtype."""
        return quantised_dense(x, self.weight[...], self.scales[...], None if self.bias is None else self.bias[...], self.int8_activations)


class QuantisedEmbedding(Embedding):
    """The table of embeddings in int8: weight [V, D] with scales [V]."""

    def __init__(self, base: Embedding) -> None:
        (rows, width), axes = base.weight.get_value().shape, base.weight.get_metadata()["axes"]
        self.weight = _abstract((rows, width), axes, DTYPES["int8"])
        self.scales = _abstract((rows,), axes[:1], jnp.dtype("float32"))

    def __call__(self, ids: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """Map ids [...] (integers) to embeddings [..., D] in ``dtype``."""
        return (self.weight[...][ids].astype(jnp.float32) * self.scales[...][ids][..., None]).astype(dtype)

    def scores(self, x: jax.Array) -> jax.Array:
        """Map states x [..., D] to scores [..., V] in x's dtype, as a head that is tied to the embedding."""
        return quantised_dense(x, self.weight[...], self.scales[...])


def quantised_config(config: UniPixelConfig, how: Quantisation | None, where: Any) -> UniPixelConfig:
    """Return the configuration of the model with its weights quantised; as it is for None.

    Args:
        config: the model's configuration.
        how: how the weights are quantised.
        where: what the model is called in messages.

    Raises:
        UserError: the weights are quantised already, or the groups do not divide the widths of the layers.
    """
    if how is None:
        return config
    if config.quantisation is not None:
        raise UserError(f"{where} holds {config.quantisation} weights already: take it as it is, or quantise the directory that it was made of")
    return replace(config, quantisation=how)


def require_full(config: UniPixelConfig, where: Any, what: str) -> None:
    """Check that a model's weights are not quantised.

    Args:
        config: the model's configuration.
        where: what the model is called in the message.
        what: what needs full weights, as the beginning of the message.

    Raises:
        UserError: they are quantised.
    """
    if config.quantisation is not None:
        raise UserError(f"{what} needs full weights, and {where} holds {config.quantisation} weights: take the directory that it was quantised from")


def quantise_text(text: TextModel, how: Quantisation) -> None:
    """Give an abstract language model the form in which its weights are quantised, in place: ``jax.ShapeDtypeStruct`` for whole numbers and scales."""
    for _, parent in list(nnx.iter_modules(text.blocks)):
        for name, layer in list(vars(parent).items()):
            if isinstance(layer, Linear):
                setattr(parent, name, QuantisedLinear(layer, how))
    text.embed = QuantisedEmbedding(text.embed)
    if text.head is not None:
        text.head = QuantisedLinear(text.head, Quantisation("int8"))


def _abstract(shape: tuple[int, ...], axes: Axes, dtype: jnp.dtype) -> nnx.Param:
    return nnx.Param(jax.ShapeDtypeStruct(shape, dtype), axes=axes)
