"""Fingerprints of arrays, which tell whether an array has changed: weighted sums of the bits of its elements, in whole numbers modulo 2^32.

Whole numbers add up to the same sum in any order, so an array has the same fingerprint however it is sharded over devices and hosts. Each weight is odd and
so has an inverse modulo 2^32: a change of one element always changes the sum, and a change of several elements goes unseen once in four thousand million times.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

SPREAD = 0x9E3779B1
"""2^32 divided by the golden ratio (Knuth, The Art of Computer Programming, 6.4), by which neighbouring elements get weights that are far apart."""

SMALL = 2**20
"""The largest size in bytes of an array that is summed on the host. A model has hundreds of small shapes, and compiling a program for each of them would take
longer than moving the arrays."""

UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32}
"""The unsigned integers by their size in bytes."""


def fingerprints(arrays: Mapping[str, jax.Array]) -> dict[str, int]:
    """Return the fingerprint of every array, a number below 2^32. All hosts must call it with the same names, since the arrays may be sharded over them.

    Args:
        arrays: arrays of any shape by name, of booleans or of numbers with 1, 2 or 4 bytes.
    """
    small = {name for name, array in arrays.items() if array.nbytes <= SMALL and (array.is_fully_addressable or array.is_fully_replicated)}
    # All sums are one program: several programs at once, on CPUs of several processes, waited for ever for each other's collectives (jax 0.10.2).
    sums = _on_device({name: array for name, array in arrays.items() if name not in small})
    return {name: int(_on_host(np.asarray(array)) if name in small else sums[name]) for name, array in arrays.items()}


def _on_host(array: np.ndarray) -> np.uint32:
    bits = np.ascontiguousarray(array).reshape(-1).view(UNSIGNED[array.dtype.itemsize]).astype(np.uint32)
    return np.sum(bits * (np.arange(bits.size, dtype=np.uint32) * np.uint32(SPREAD) | np.uint32(1)), dtype=np.uint32)


@jax.jit
def _on_device(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: _sum(array) for name, array in arrays.items()}


def _sum(array: jax.Array) -> jax.Array:
    array = jax.device_put(array, jax.memory.Space.Device)  # it may lie in the host's memory, where nothing is computed
    unsigned = UNSIGNED[array.dtype.itemsize]
    bits = array.astype(unsigned) if array.dtype == jnp.bool_ else jax.lax.bitcast_convert_type(array, unsigned)
    index, stride = jnp.zeros(array.shape, jnp.uint32), 1
    for axis in reversed(range(array.ndim)):
        index += jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= array.shape[axis]
    return jnp.sum(bits.astype(jnp.uint32) * (index * jnp.uint32(SPREAD) | jnp.uint32(1)), dtype=jnp.uint32)
