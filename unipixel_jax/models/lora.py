"""LoRA (Hu et al. 2021): a trained product of two small matrices beside frozen weights, on the attention projections of the two Qwen parts or on all
linear layers outside SAM 2 (reference: unipixel/train/train.py, get_target_modules, with peft's tuners/lora).

R is the rank of the adapters.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx

from unipixel_jax.core.params import abstract, declare, zeros
from unipixel_jax.core.trees import KeyPath
from unipixel_jax.errors import UserError
from unipixel_jax.models.layers import Dropout, Linear
from unipixel_jax.models.qwen_vl import text, vision
from unipixel_jax.models.unipixel import UniPixelModel
from unipixel_jax.ops.dense import dense

Part = Literal["llm", "visual", "all"]
Layers = Literal["qkvo", "linear"]
Bias = Literal["none", "lora_only", "all"]

ATTENTION: Mapping[type[nnx.Module], tuple[str, ...]] = {text.Attention: ("q", "k", "v", "o"), vision.Attention: ("qkv", "proj")}
"""The attributes of each kind of module whose linear layers get an adapter where ``LoraConfig.layers`` is "qkvo"."""
PLAIN: tuple[KeyPath, ...] = (("sam2",), ("ref_encoder",), ("vision", "patch_embed"), ("text", "head"))
"""The paths below which no layer gets an adapter. The first three have none in the reference either; the head is left plain since, with its embedding, it is
trained as a whole where it is trained, and is the embedding itself in a tied model."""


@dataclass(frozen=True)
class LoraConfig:
    """The size of the adapters, and the layers that have them; the defaults are those of UniPixel's third stage.

    Attributes:
        rank: the rows of A and the columns of B.
        alpha: the product B A is multiplied by ``alpha / rank``.
        dropout: the rate at which the inputs of an adapter are dropped while training.
        part: where adapters are: "visual" for the vision tower, "llm" for all else, which is the language model with "qkvo", or "all". With ``layers``, it is
            the reference's ``lora_type``, for example "qkvo_all".
        layers: which layers have adapters: "qkvo" for the projections of attention, "linear" for all linear layers but the head's and SAM 2's.
        bias: which biases are trained with the adapters: "none", "lora_only" for those of the layers that have one, or "all" for the whole model's, SAM 2's
            included (the reference's ``lora_bias``).
    """

    rank: int = 128
    alpha: float = 256
    dropout: float = 0.1
    part: Part = "all"
    layers: Layers = "qkvo"
    bias: Bias = "none"


class LoraLinear(Linear):
    """A linear layer with an adapter: ``x @ weight.T + bias + scale * dropout(x) @ a.T @ b.T``, where a [R, in] and b [out, R] are trained."""

    def __init__(self, base: Linear, c: LoraConfig, rngs: nnx.Rngs) -> None:
        shape, axes = base.weight.shape, base.weight.get_metadata()["axes"]
        stack, (d_out, d_in) = shape[:-2], shape[-2:]
        over = axes[: len(stack)]
        self.weight, self.bias = base.weight, base.bias
        self.lora_a = declare(rngs, (*stack, c.rank, d_in), (*over, None, axes[-1]), _a)
        self.lora_b = declare(rngs, (*stack, d_out, c.rank), (*over, axes[-2], None), zeros)
        self.dropout = Dropout(c.dropout)
        self.scale = c.alpha / c.rank
        self.name = base.name

    def product(self, x: jax.Array) -> jax.Array:
        """Map x [..., in] to [..., out] in x's dtype. Only the sum has a name for rematerialisation, so that its two terms are not kept beside it."""
        return super().product(x) + dense(dense(self.dropout(x), self.lora_a[...]), self.lora_b[...]) * self.scale

    def merged(self) -> Linear:
        """Return the plain layer with the product added to its weight. The sum is computed in float32 and cast to the weight's dtype."""
        product = jnp.matmul(self.lora_b[...], self.lora_a[...], precision="highest") * self.scale
        plain = abstract(lambda rngs: Linear(1, 1, (None, None), rngs, bias=self.bias is not None, name=self.name))
        plain.weight, plain.bias = jax.tree.map(lambda w: (w.astype(jnp.float32) + product).astype(w.dtype), self.weight), self.bias
        return plain


def add_lora(model: UniPixelModel, config: LoraConfig, rngs: nnx.Rngs) -> UniPixelModel:
    """Return the model with adapters that change nothing yet: A is random and B is zero (peft's default).

    Args:
        model: a model of arrays or, inside ``abstract``, of shapes; stacked or not. It is not changed, and shares its weights with the result.
        config: size and towers of the adapters.
        rngs: the random numbers of A.

    Raises:
        UserError: part, layers or bias are unknown, the rank is below 1, the rate lies outside [0, 1), or the model has adapters already.
    """
    _check(config)
    model = jax.tree.map(lambda a: a, model)
    if _adapted(model):
        raise UserError("the model has LoRA adapters already: merge them first (merge_lora), or start from the plain model")
    for parent, name in _targets(model, config):
        setattr(parent, name, LoraLinear(getattr(parent, name), config, rngs))
    return model


def trained_biases(model: UniPixelModel, config: LoraConfig) -> set[tuple[Any, ...]]:
    """Return the paths of the biases that are trained with the adapters of a model."""
    biases: set[tuple[Any, ...]] = {path for path, _ in nnx.to_flat_state(nnx.state(model)) if path[-1] == "bias"}
    if config.bias == "lora_only":
        return biases & {(*path, "bias") for path, module in nnx.iter_modules(model) if isinstance(module, LoraLinear)}
    return biases if config.bias == "all" else set()


def merge_lora(model: UniPixelModel) -> UniPixelModel:
    """Return the plain model that computes the same, with the adapters added to the weights. The given model is not changed.

    Raises:
        UserError: the model has no adapters.
    """
    model = jax.tree.map(lambda a: a, model)
    adapted = _adapted(model)
    if not adapted:
        raise UserError("the model has no LoRA adapters to merge")
    for parent, name in adapted:
        setattr(parent, name, getattr(parent, name).merged())
    return model


def _a(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """Draw Kaiming-uniform weights with a = sqrt(5), as torch initialises linear layers, which is uniform within 1 / sqrt(in)."""
    bound = 1 / math.sqrt(shape[-1])
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def _layers(model: UniPixelModel) -> Iterator[tuple[tuple[Any, ...], nnx.Module, str]]:
    """Yield the path of every linear layer, the module that holds it, and its attribute name there."""
    for path, module in list(nnx.iter_modules(model)):
        for name, layer in list(vars(module).items()):
            if isinstance(layer, Linear):
                yield (*path, name), module, name


def _targets(model: UniPixelModel, config: LoraConfig) -> Iterator[tuple[nnx.Module, str]]:
    """Yield the modules that hold a layer that gets an adapter, with the layer's attribute name."""
    for path, parent, name in _layers(model):
        here = config.part == "all" or (path[0] == "vision") == (config.part == "visual")
        fits = config.layers == "linear" or name in ATTENTION.get(type(parent), ())
        if here and fits and not any(path[: len(plain)] == plain for plain in PLAIN):
            yield parent, name


def _adapted(model: UniPixelModel) -> list[tuple[nnx.Module, str]]:
    """Return the modules that hold a layer with an adapter, with the layer's attribute name."""
    return [(parent, name) for _, parent, name in _layers(model) if isinstance(getattr(parent, name), LoraLinear)]


def _check(config: LoraConfig) -> None:
    for field, known in (("part", get_args(Part)), ("layers", get_args(Layers)), ("bias", get_args(Bias))):
        value = getattr(config, field)
        if value not in known:
            near = difflib.get_close_matches(str(value), known, n=1, cutoff=0)[0]
            raise UserError(f"LoRA with {field} {value!r} is unknown: expected one of {', '.join(known)}; did you mean {near!r}?")
    if config.rank < 1:
        raise UserError(f"LoRA of rank {config.rank} is empty: expected a rank of at least 1; for a model without adapters, leave LoRA out")
    if not 0 <= config.dropout < 1:
        raise UserError(f"LoRA dropout {config.dropout} is not a probability below 1: expected 0 <= dropout < 1")
