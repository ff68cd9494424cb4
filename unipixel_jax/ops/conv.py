"""Convolutions with torch's kernel layouts on channels-last maps, each in the form that is fast on every backend."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from einops import rearrange

from unipixel_jax.core.platform import platform
from unipixel_jax.ops.dense import dense


def conv(x: jax.Array, weight: jax.Array, bias: jax.Array, stride: int, padding: int) -> jax.Array:
    """2-D convolution. x [B, h, w, I], weight [O, I, k, k] cast to x's dtype, bias [O]; returns [B, h', w', O] in x's dtype.

    XLA's CPU backend is slow at the gradient of a convolution inside a loop (three quarters of a training step that tracks went into the memory encoder's);
    there the gradient is that of a matrix product.
    """
    convolve = _conv_cpu if platform() == "cpu" else _conv_native
    return convolve(stride, padding, x, weight.astype(x.dtype)) + bias.astype(x.dtype)[None, None, None]


def _conv_native(stride: int, padding: int, x: jax.Array, weight: jax.Array) -> jax.Array:
    """Compute the convolution as one operation of XLA, which in a loop on a CPU takes its fast path only for kernels [k, k, I, O]: with those of torch, five
    maps of 96 x 96 x 64 took 516 ms instead of 70 (measured once, on two cores with AVX2).
    """
    around, kernel = (padding, padding), weight.transpose(2, 3, 1, 0)
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), (around, around), dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _conv_gathered(stride: int, padding: int, x: jax.Array, weight: jax.Array) -> jax.Array:
    """Compute the convolution as one matrix product with the pixels under the kernel, concatenated along the channels."""
    around, k = (padding, padding), weight.shape[-1]
    padded = jnp.pad(x, ((0, 0), around, around, (0, 0)))
    h, w = (size - k + 1 for size in padded.shape[1:3])
    under = [padded[:, i : h + i : stride, j : w + j : stride] for i in range(k) for j in range(k)]
    return dense(jnp.concatenate(under, axis=-1), rearrange(weight, "o i row column -> o (row column i)"))


_conv_cpu = jax.custom_vjp(_conv_native, nondiff_argnums=(0, 1))
_conv_cpu.defvjp(
    lambda stride, padding, x, weight: (_conv_native(stride, padding, x, weight), (x, weight)),
    lambda stride, padding, kept, change: jax.vjp(partial(_conv_gathered, stride, padding), *kept)[1](change),
)


def conv_patches(x: jax.Array, weight: jax.Array, bias: jax.Array) -> jax.Array:
    """Convolution whose stride equals its kernel: one matrix product. x [B, h, w, I], weight [O, I, k, k]; returns [B, h/k, w/k, O]."""
    k = weight.shape[-1]
    x = rearrange(x, "b (h row) (w column) i -> b h w (i row column)", row=k, column=k)
    return dense(x, rearrange(weight, "o i row column -> o (i row column)"), bias)


def conv_transpose2(x: jax.Array, weight: jax.Array, bias: jax.Array) -> jax.Array:
    """Transposed convolution with kernel and stride 2: one matrix product. x [B, h, w, I], weight [I, O, 2, 2]; returns [B, 2h, 2w, O]."""
    y = dense(x, rearrange(weight, "i o row column -> i (o row column)").T)
    y = rearrange(y, "b h w (o row column) -> b (h row) (w column) o", row=2, column=2)
    return y + bias.astype(x.dtype)[None, None, None]


def depthwise(x: jax.Array, weight: jax.Array, bias: jax.Array) -> jax.Array:
    """Depthwise convolution with an odd kernel and same padding. x [B, h, w, C], weight [C, 1, k, k], bias [C]; returns x's shape and dtype.

    XLA's CPU backend runs a grouped convolution 100 times slower than torch (37 ms against 0.4 at 48x48x256); a sum of shifted products fuses into one loop
    there. For a TPU that sum is some forty loops, each of which reads and writes the whole map in float32; there the convolution is one operation.
    """
    convolve = _depthwise_tpu if platform() == "tpu" else _depthwise_shifted
    return (convolve(x, weight) + bias.astype(jnp.float32)[None, None, None]).astype(x.dtype)


def _shifts(x: jax.Array, k: int) -> list[list[jax.Array]]:
    """``x`` moved by each row (outer list) and column of a kernel, zeros where it leaves the map."""
    _, h, w, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2), (0, 0)))
    return [[padded[:, i : i + h, j : j + w] for j in range(k)] for i in range(k)]


def _depthwise_shifted(x: jax.Array, weight: jax.Array) -> jax.Array:
    """The sum in float32."""
    moved, kernel = _shifts(x.astype(jnp.float32), weight.shape[-1]), weight.astype(jnp.float32)
    total = jnp.zeros((), jnp.float32)
    for i, row in enumerate(moved):
        for j, one in enumerate(row):
            total = total + one * kernel[None, None, None, :, 0, i, j]
    return total


@jax.custom_vjp
def _depthwise_tpu(x: jax.Array, weight: jax.Array) -> jax.Array:
    """The same by XLA's grouped convolution, whose own gradient for the kernel takes the compiler a minute; here it is one sum for each weight."""
    around, exact = (weight.shape[-1] // 2,) * 2, jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jax.lax.conv_general_dilated(
        x,
        weight.astype(x.dtype),
        (1, 1),
        (around, around),
        dimension_numbers=("NHWC", "OIHW", "NHWC"),
        feature_group_count=x.shape[-1],
        precision=exact,
        preferred_element_type=jnp.float32,
    )


def _depthwise_backward(kept: tuple[jax.Array, jax.Array], change: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, weight = kept
    k = weight.shape[-1]
    to_x = _depthwise_tpu(change.astype(x.dtype), weight[..., ::-1, ::-1])
    sums = [[jnp.sum(one.astype(jnp.float32) * change, (0, 1, 2)) for one in row] for row in _shifts(x, k)]
    return to_x.astype(x.dtype), jnp.stack([jnp.stack(row, -1) for row in sums], -2)[:, None].astype(weight.dtype)


_depthwise_tpu.defvjp(lambda x, weight: (_depthwise_tpu(x, weight), (x, weight)), _depthwise_backward)
