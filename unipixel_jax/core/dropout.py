"""Randomness as leaves of the model.

A module that draws random numbers holds a random key while it trains. Outside training it has none: it draws nothing, and checkpoints, the converter and
comparisons see no such leaf. ``with_keys`` sets the keys for one step of training, and from then on they are arrays of the model like its weights: a scan over
stacked blocks hands each layer its own key, ``jax.checkpoint`` draws the same numbers again, and a loop over frames or samples folds the frame's or the
sample's number into them (``fold``).

Keys are not differentiable, so ``with_keys`` is called inside the function that ``jax.grad`` differentiates.
"""

from __future__ import annotations

from typing import TypeVar

import jax
from flax import nnx

from unipixel_jax.core.axes import LAYERS
from unipixel_jax.core.stacking import is_variable

M = TypeVar("M", bound=nnx.Module)


class DropoutKey(nnx.Variable):
    """A random key (scalar), or the keys [layers] of stacked modules."""


class Random(nnx.Module):
    """A module that draws random numbers while it has a ``key``. Outside training the key is None, which is no leaf of the tree."""

    def __init__(self) -> None:
        self.key: DropoutKey | None = nnx.data(None)


def with_keys(model: M, key: jax.Array) -> M:
    """Return a model with the same weights, in which every ``Random`` module has a key of its own.

    Args:
        model: any module; it is not changed.
        key: a scalar key; the same key gives the same numbers.
    """
    other = jax.tree.map(lambda a: a, model)
    modules = dict(nnx.iter_modules(other))
    random = {path: module for path, module in modules.items() if isinstance(module, Random)}
    for number, path in enumerate(sorted(random, key=str)):
        own, layers = jax.random.fold_in(key, number), _layers(modules[path[:-1]])
        random[path].key = DropoutKey(own if layers is None else jax.random.split(own, layers))
    return other


def fold(module: M, data: int | jax.Array) -> M:
    """Return the module with ``data`` (the number of a frame or a sample, an int32 scalar) folded into all its keys, if it has any."""

    def folded(leaf: object) -> object:
        if not isinstance(leaf, DropoutKey):
            return leaf
        key = leaf[...]
        return leaf.replace(jax.vmap(jax.random.fold_in, (0, None))(key, data) if key.ndim else jax.random.fold_in(key, data))

    return jax.tree.map(folded, module, is_leaf=is_variable)


def _layers(parent: nnx.Module) -> int | None:
    """Return how many layers a module stacks, which is so where all of its weights have a leading axis of layers; None for a single layer."""
    weights = [leaf for leaf in jax.tree.leaves(parent, is_leaf=is_variable) if isinstance(leaf, nnx.Param)]
    stacked = [leaf.get_metadata()["axes"][0] == LAYERS and len(leaf.get_metadata()["axes"]) == leaf.ndim for leaf in weights]
    return weights[0].shape[0] if stacked and all(stacked) else None
