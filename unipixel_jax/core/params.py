"""One declaration per weight: shape, logical axes and initialiser, from which abstract shapes, shardings and initial values all derive."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextvars import ContextVar
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from unipixel_jax.core.axes import ALL, Axes

Initializer = Callable[[jax.Array, tuple[int, ...], jnp.dtype], jax.Array]

normal: Initializer = jax.nn.initializers.normal(0.02)
"""For position codes and the like."""


def lecun(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """Uniform with a variance of 1 / inputs, for weights laid out [out, in, ...]: what goes in comes out with the same variance, whatever the width."""
    bound = math.sqrt(3 / math.prod(shape[1:]))
    return jax.random.uniform(key, shape, dtype, -bound, bound)


zeros: Initializer = jax.nn.initializers.zeros
ones: Initializer = jax.nn.initializers.ones
xavier: Initializer = jax.nn.initializers.glorot_uniform(in_axis=-1, out_axis=-2)
"""Xavier-uniform for weights laid out [out, in]."""
unit_normal: Initializer = jax.nn.initializers.normal(1.0)


_abstract: ContextVar[bool] = ContextVar("abstract", default=False)
T = TypeVar("T")


def abstract(make: Callable[[nnx.Rngs], T]) -> T:
    """``make(rngs)`` with shapes in place of arrays, without tracing an initialiser: 7B parameters in a tenth of a second."""
    token = _abstract.set(True)
    try:
        return make(nnx.Rngs(0))
    finally:
        _abstract.reset(token)


def is_abstract() -> bool:
    """True inside ``abstract``."""
    return _abstract.get()


def declare(rngs: nnx.Rngs, shape: tuple[int, ...], axes: Axes, init: Initializer = normal) -> nnx.Param:
    """A float32 weight of ``shape`` whose dimensions carry the logical names ``axes`` (None: never sharded).

    Raises:
        ValueError: ``axes`` has another length than ``shape``, or a name that core/axes.py does not list.
    """
    if len(axes) != len(shape) or any(a is not None and a not in ALL for a in axes):
        raise ValueError(f"axes {axes} do not describe a weight of shape {shape}")
    if is_abstract():
        return nnx.Param(jax.ShapeDtypeStruct(shape, jnp.float32), axes=axes)
    return nnx.Param(init(rngs.params(), shape, jnp.dtype("float32")), axes=axes)
