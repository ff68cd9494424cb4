"""A number that says whether an array is still the same: a weighted sum of its bits, in whole numbers.

Whole numbers add up to the same sum in any order, so an array has the same fingerprint however it is divided over devices and hosts. Each weight is odd,
hence has an inverse modulo 2^32: a change of any one element always changes the sum, and a change of several goes unseen once in four thousand million times.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

SPREAD = 0x9E3779B1
"""2^32 divided by the golden ratio (Knuth, The Art of Computer Programming, 6.4), by which neighbouring elements get weights that are far apart."""


def fingerprints(arrays: Mapping[str, jax.Array]) -> dict[str, int]:
    """The fingerprint of every array, a number below 2^32. All hosts must call it alike, since the arrays may be divided over them.

    Args:
        arrays: of any shape, of booleans or of numbers with 1, 2 or 4 bytes.
    """
    return {name: int(value) for name, value in jax.device_get({name: _weighted_sum(array) for name, array in arrays.items()}).items()}


@jax.jit
def _weighted_sum(array: jax.Array) -> jax.Array:
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[array.dtype.itemsize]
    bits = array.astype(unsigned) if array.dtype == jnp.bool_ else jax.lax.bitcast_convert_type(array, unsigned)
    index, stride = jnp.zeros(array.shape, jnp.uint32), 1
    for axis in reversed(range(array.ndim)):
        index += jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= array.shape[axis]
    return jnp.sum(bits.astype(jnp.uint32) * (index * jnp.uint32(SPREAD) | jnp.uint32(1)), dtype=jnp.uint32)
