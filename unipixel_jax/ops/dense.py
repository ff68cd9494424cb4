"""Matrix products with weights laid out [out, in], accumulated in float32, or exactly where the weights are whole numbers.

R rows of inputs, G groups of g neighbouring weights.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from unipixel_jax.core.platform import platform

FEW_ROWS, FEW_GROUPED = 64, 2
"""The most rows of inputs that a CPU multiplies as int8 digits, by weights with a scale for each row and by weights in groups. For more rows it is faster to
cast the weights (docs/quantise.md)."""
DIGITS = 3
"""The int8 digits into which a CPU splits few inputs: 24 bits, as many as a float32 has. Two take as long."""
PIECE = 512
"""The most outputs, or in groups inputs, for which a CPU casts weights at a time. XLA casts the weights of all layers before the first product otherwise, where
the layers are unstacked: nothing in a program says when a weight that is an argument may be cast."""
INT8 = 127
"""The largest int8 that is used; -128 is not, so that the range is symmetric."""


def dense(x: jax.Array, weight: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """Return ``x @ weight.T + bias``.

    Args:
        x: [..., in] of any float dtype, which is the dtype of the computation.
        weight: [out, in], cast to x's dtype. The layout is torch's, so that checkpoints convert by copying. A row is contiguous, which made
            products with few rows 1.4 to 1.5 times faster on a CPU than with [in, out] (measured with 1 and 512 rows of 2048).
        bias: [out] or None.

    Returns:
        [..., out] in x's dtype; sums are accumulated in float32. A GPU rounds them to x's dtype before it adds the bias.
    """
    weight = weight.astype(x.dtype)
    out, rows = weight.shape[0], x.reshape(-1, x.shape[-1])
    # XLA's CPU backend has no fast bfloat16 product for a single row: it takes 30 times as long as for two rows (at 11008x2048).
    single = rows.shape[0] == 1 and x.dtype == jnp.bfloat16 and platform() == "cpu"
    if single:
        rows = jnp.concatenate([rows, rows])
    # XLA adds a bias on a GPU in a loop of its own, between which and the product the sums would be twice as many bytes in float32.
    sums = x.dtype if bias is not None and platform() == "gpu" else jnp.float32
    y = jax.lax.dot_general(rows, weight, (((1,), (1,)), ((), ())), preferred_element_type=sums)
    if single:
        y = y[:1]
    if bias is not None:
        y = y.astype(jnp.float32) + bias.astype(jnp.float32)[None]
    return y.astype(x.dtype).reshape(*x.shape[:-1], out)


def quantised_dense(x: jax.Array, weight: jax.Array, scales: jax.Array, bias: jax.Array | None = None, int8_activations: bool = False) -> jax.Array:
    """Return ``x @ (scales * weight).T + bias``, for weights that are whole numbers.

    Nothing larger than one layer's weights is made on the way. With a scale for each row, an accelerator casts the weights while it multiplies. A CPU would
    write the cast weights to memory first; it multiplies few rows as int8 instead, exactly, since each input is the sum of three int8 digits.

    Args:
        x: [..., in] of any float dtype, which is the dtype of the computation.
        weight: [out, in] of int8, with a scale for each row; or [G, g, out] of int8 or int4, where G * g is in, with a scale for each group of a row.
            Groups come first so that a mesh which shards inputs shards whole groups, and g is not last since a TPU pads the last axis to 128.
        scales: [out] or [G, out], of any float dtype.
        bias: [out] or None.
        int8_activations: with a scale for each row, whether inputs are rounded to int8 too, which multiplies faster and is less exact. Few rows on a CPU
            are not rounded.

    Returns:
        [..., out] in x's dtype.
    """
    rows, scales = x.reshape(-1, x.shape[-1]), scales.astype(jnp.float32)
    cpu, grouped = platform() == "cpu", weight.ndim == 3
    few = cpu and rows.shape[0] <= (FEW_GROUPED if grouped else FEW_ROWS)
    if few or int8_activations:
        y = _integer_product(rows, weight, scales, DIGITS if few else 1)
    else:
        product = _grouped_product if grouped else _cast_product
        y = product(rows, weight, scales, _pieces(weight.shape[0], PIECE // weight.shape[1] if grouped else PIECE) if cpu else 1)
    if bias is not None:
        y = y + bias.astype(jnp.float32)[None]
    return y.astype(x.dtype).reshape(*x.shape[:-1], y.shape[-1])


def _cast_product(rows: jax.Array, weight: jax.Array, scales: jax.Array, pieces: int) -> jax.Array:
    """Multiply rows [R, in] by a weight [out, in] with scales [out], cast in so many pieces of the outputs; returns [R, out] in float32."""

    def multiply(piece: jax.Array) -> jax.Array:
        return jax.lax.dot_general(rows, piece.astype(rows.dtype), (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)

    if pieces == 1:
        return multiply(weight) * scales[None]
    out = weight.shape[0]
    size = out // pieces

    def step(i: jax.Array, y: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(y, multiply(jax.lax.dynamic_slice_in_dim(weight, i * size, size)), i * size, axis=1)

    # Every value is written over. What the buffer begins with comes from the rows, lest XLA reserve the buffers of all layers before the first product.
    return jax.lax.fori_loop(0, pieces, step, jnp.broadcast_to(rows[:, :1].astype(jnp.float32), (rows.shape[0], out))) * scales[None]


def _grouped_product(rows: jax.Array, weight: jax.Array, scales: jax.Array, pieces: int) -> jax.Array:
    """Multiply rows [R, in] by a weight [G, g, out] with scales [G, out], cast in so many pieces of the groups; returns [R, out] in float32."""

    def add(y: jax.Array, piece: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        rows, weight, scales = piece
        full = (weight.astype(jnp.float32) * scales[:, None]).astype(rows.dtype)
        return y + jax.lax.dot_general(rows, full, (((1, 2), (0, 1)), ((), ())), preferred_element_type=jnp.float32), None

    groups, size, out = weight.shape
    # Zeros that come from the rows, lest XLA reserve the buffers of all layers before the first product; NaN stays NaN, as in a sum.
    none, grouped = jnp.broadcast_to(rows[:, :1].astype(jnp.float32) * 0, (rows.shape[0], out)), rows.reshape(-1, groups, size)
    if pieces == 1:
        return add(none, (grouped, weight, scales))[0]
    parts = grouped.reshape(-1, pieces, groups // pieces, size).swapaxes(0, 1)
    return jax.lax.scan(add, none, (parts, weight.reshape(pieces, -1, size, out), scales.reshape(pieces, -1, out)))[0]


def _pieces(length: int, most: int) -> int:
    """Return into how many equal pieces of at most ``most``, and at least 1, an axis is cut."""
    return next(count for count in range(-(-length // max(most, 1)), length + 1) if length % count == 0)


def _integer_product(rows: jax.Array, weight: jax.Array, scales: jax.Array, digits: int) -> jax.Array:
    """Multiply rows [R, in], each the sum of int8 digits, by weights of whole numbers; returns [R, out] in float32. Arguments as in ``quantised_dense``."""
    parts, units = _digits(rows.astype(jnp.float32), digits)
    if weight.ndim == 2:
        y = jax.lax.dot_general(parts, weight, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32).astype(jnp.float32) * scales[None]
    else:
        parts, weight = parts.reshape(-1, *weight.shape[:2]), weight.astype(jnp.int8)
        sums = jax.lax.dot_general(parts, weight, (((2,), (1,)), ((1,), (0,))), preferred_element_type=jnp.int32)
        y = jnp.sum(sums.astype(jnp.float32) * scales[:, None], axis=0)
    return jnp.sum(y.reshape(digits, rows.shape[0], -1) * units, axis=0)


def _digits(rows: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Split each row [R, in] of float32 into ``count`` int8 digits, the coarsest first.

    Returns:
        The digits [count * R, in], and the units [count, R, 1] by which they are multiplied to add up to the rows.
    """
    largest = jnp.max(jnp.abs(rows), axis=1, keepdims=True)
    unit = jnp.where(largest > 0, largest, 1) / INT8
    digits, units = [], []
    for _ in range(count):
        digit = jnp.round(rows / unit)
        digits.append(digit.astype(jnp.int8))
        units.append(unit)
        rows, unit = rows - digit * unit, unit / (2 * INT8)
    return jnp.concatenate(digits), jnp.stack(units)
