"""The declaration of a weight: its shape, logical axes and initialiser, from which abstract shapes, shardings and initial values derive."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import TypeVar, cast

import jax
import jax.numpy as jnp
from flax import nnx

from unipixel_jax.core.axes import ALL, Axes
from unipixel_jax.core.trees import KeyPath

Initializer = Callable[[jax.Array, tuple[int, ...], jnp.dtype], jax.Array]

normal: Initializer = jax.nn.initializers.normal(0.02)
"""A normal distribution with standard deviation 0.02, for position codes and other learned embeddings."""


def lecun(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """Draw uniformly with a variance of 1 / inputs, for weights laid out [out, in, ...], so that outputs have the variance of the inputs at any width."""
    bound = math.sqrt(3 / math.prod(shape[1:]))
    return jax.random.uniform(key, shape, dtype, -bound, bound)


zeros: Initializer = jax.nn.initializers.zeros
ones: Initializer = jax.nn.initializers.ones
xavier: Initializer = jax.nn.initializers.glorot_uniform(in_axis=-1, out_axis=-2)
"""The Xavier-uniform distribution, for weights laid out [out, in]."""
unit_normal: Initializer = jax.nn.initializers.normal(1.0)


_abstract: ContextVar[bool] = ContextVar("abstract", default=False)
T = TypeVar("T")
M = TypeVar("M", bound=nnx.Module)


def abstract(make: Callable[[nnx.Rngs], T]) -> T:
    """Return ``make(rngs)`` with a ``jax.ShapeDtypeStruct`` in place of each array. No initialiser is traced, so 7B parameters take a tenth of a second."""
    token = _abstract.set(True)
    try:
        return make(nnx.Rngs(0))
    finally:
        _abstract.reset(token)


def shapes(model: nnx.Module) -> dict[KeyPath, tuple[int, ...]]:
    """Return path and shape of every weight of a model, abstract or not."""
    return {cast(KeyPath, path): leaf.get_value().shape for path, leaf in nnx.to_flat_state(nnx.state(model))}


def filled(model: M, arrays: Mapping[KeyPath, jax.Array]) -> M:
    """Return a model with ``arrays`` as its weights; there is one for the path of each."""
    graph, state = nnx.split(model)
    leaves = [(path, leaf.replace(arrays[cast(KeyPath, path)])) for path, leaf in nnx.to_flat_state(state)]
    return nnx.merge(graph, nnx.from_flat_state(leaves))


def is_abstract() -> bool:
    """Return whether the caller runs inside ``abstract``."""
    return _abstract.get()


def declare(rngs: nnx.Rngs, shape: tuple[int, ...], axes: Axes, init: Initializer = normal) -> nnx.Param:
    """Declare a float32 weight of ``shape`` whose dimensions carry the logical names ``axes`` (None for one that is never sharded).

    Raises:
        ValueError: ``axes`` has another length than ``shape``, or a name that core/axes.py does not list.
    """
    if len(axes) != len(shape) or any(a is not None and a not in ALL for a in axes):
        raise ValueError(f"axes {axes} do not describe a weight of shape {shape}")
    if is_abstract():
        return nnx.Param(jax.ShapeDtypeStruct(shape, jnp.float32), axes=axes)
    return nnx.Param(init(rngs.params(), shape, jnp.dtype("float32")), axes=axes)
