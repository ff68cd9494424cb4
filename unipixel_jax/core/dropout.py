"""Randomness as leaves of the model.

A module that draws random numbers holds their key. At rest there is none: the module computes nothing, and checkpoints, converter and comparisons see no
such leaf. ``with_keys`` puts keys in place for one step of training; from then on they travel as arrays do. A scan over stacked blocks hands each layer
its own, ``jax.checkpoint`` draws the same numbers again, and a loop over frames or samples folds its number in.

Keys are not differentiable, so they are filled in inside the function that ``jax.grad`` differentiates.
"""

from __future__ import annotations

from typing import TypeVar

import jax
from flax import nnx

from unipixel_jax.core.axes import LAYERS
from unipixel_jax.core.stacking import is_variable

M = TypeVar("M", bound=nnx.Module)


class DropoutKey(nnx.Variable):
    """A random key, or in stacked modules one for each layer."""


class Random(nnx.Module):
    """A module that draws random numbers while ``key`` is there. At rest it is None, which is no leaf."""

    def __init__(self) -> None:
        self.key: DropoutKey | None = nnx.data(None)


def with_keys(model: M, key: jax.Array) -> M:
    """The same weights, with keys in every ``Random`` of the model, all different.

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
    """The same module with ``data`` (a frame's or a sample's number, an int32 scalar) folded into all its keys; without keys, just the module."""

    def folded(leaf: object) -> object:
        if not isinstance(leaf, DropoutKey):
            return leaf
        key = leaf[...]
        return leaf.replace(jax.vmap(jax.random.fold_in, (0, None))(key, data) if key.ndim else jax.random.fold_in(key, data))

    return jax.tree.map(folded, module, is_leaf=is_variable)


def _layers(parent: nnx.Module) -> int | None:
    """How many layers are stacked in a module: all of its weights then have that axis in front. None if it is a single one."""
    weights = [leaf for leaf in jax.tree.leaves(parent, is_leaf=is_variable) if isinstance(leaf, nnx.Param)]
    stacked = [leaf.get_metadata()["axes"][0] == LAYERS and len(leaf.get_metadata()["axes"]) == leaf.ndim for leaf in weights]
    return weights[0].shape[0] if stacked and all(stacked) else None
