"""The declaration of a weight: its shape, logical axes and initialiser, from which abstract shapes, shardings and initial values derive."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from functools import partial
from typing import TypeVar, cast

import jax
import jax.numpy as jnp
from flax import nnx

from unipixel_jax.core.axes import ALL, Axes
from unipixel_jax.core.trees import KeyPath

Initializer = Callable[[jax.Array, tuple[int, ...], jnp.dtype], jax.Array]

LEAST_DRAWN = 1 << 12
"""How many numbers are drawn at once at least."""


def _drawn(draw: Callable[[int], jax.Array], scale: float, shape: tuple[int, ...]) -> jax.Array:
    """Return the first of 2^k drawn numbers, times ``scale``, in ``shape``.

    JAX's random numbers depend on the key and on their place alone, so these are the numbers that a draw of ``shape`` itself gives. But shapes share the
    program that draws, which takes XLA's CPU backend a third of a second to compile; a small model has 84 shapes.
    """
    return _first(draw(max(LEAST_DRAWN, 1 << (math.prod(shape) - 1).bit_length())), scale, shape=shape)


@partial(jax.jit, static_argnames="shape")
def _first(numbers: jax.Array, scale: float, *, shape: tuple[int, ...]) -> jax.Array:
    return (numbers[: math.prod(shape)] * jnp.asarray(scale, numbers.dtype)).reshape(shape)


def normal(deviation: float) -> Initializer:
    """Return an initialiser that draws from a normal distribution with mean 0 and this standard deviation."""
    return lambda key, shape, dtype: _drawn(lambda count: jax.random.normal(key, (count,), dtype), deviation, shape)


def lecun(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """Draw uniformly with a variance of 1 / inputs, for weights laid out [out, in, ...], so that outputs have the variance of the inputs at any width."""
    bound = math.sqrt(3 / math.prod(shape[1:]))
    return _drawn(lambda count: jax.random.uniform(key, (count,), dtype, -bound, bound), 1.0, shape)


def xavier(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """Draw from the Xavier-uniform distribution, for weights laid out [..., out, in]."""
    fans = math.prod(shape) / shape[-1] + math.prod(shape) / shape[-2]
    return _drawn(lambda count: jax.random.uniform(key, (count,), dtype, -1), math.sqrt(6 / fans), shape)


zeros: Initializer = jax.nn.initializers.zeros
ones: Initializer = jax.nn.initializers.ones
embedding: Initializer = normal(0.02)
"""For position codes and other learned embeddings."""
unit_normal: Initializer = normal(1.0)


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


def declare(rngs: nnx.Rngs, shape: tuple[int, ...], axes: Axes, init: Initializer = embedding) -> nnx.Param:
    """Declare a float32 weight of ``shape`` whose dimensions carry the logical names ``axes`` (None for one that is never sharded).

    Raises:
        ValueError: ``axes`` has another length than ``shape``, or a name that core/axes.py does not list.
    """
    if len(axes) != len(shape) or any(a is not None and a not in ALL for a in axes):
        raise ValueError(f"axes {axes} do not describe a weight of shape {shape}")
    if is_abstract():
        return nnx.Param(jax.ShapeDtypeStruct(shape, jnp.float32), axes=axes)
    return nnx.Param(init(rngs.params(), shape, jnp.dtype("float32")), axes=axes)
