"""Self-attention within the square windows of feature maps, from the fused projection of queries, keys and values to the map of results.

XLA moves a map half a dozen times to cut it into windows and heads and to put it together again. The kernels of ``maps_tpu`` and ``maps_gpu`` read
the projection where it is, and write each result to its place. Everywhere else windows become rows of a batch for ``attention``.

B images, h and w height and width of a map, N heads, H head size, D = N H.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from unipixel_jax.core.axes import IMAGES
from unipixel_jax.core.platform import platform
from unipixel_jax.core.sharding import current_mesh, mesh_axes
from unipixel_jax.ops.attention import maps_gpu, maps_tpu
from unipixel_jax.ops.attention.api import attention
from unipixel_jax.ops.attention.choice import use_attention
from unipixel_jax.ops.attention.windows import Heads
from unipixel_jax.ops.window import merge, partition

_LOG = logging.getLogger(__name__)


class MapKernels(Protocol):
    """A module with kernels that read and write maps."""

    def why_not(self, size: tuple[int, int], window: int, heads: Heads, pooled: bool, dtype: Any) -> str | None:
        """Why they cannot do maps of that height and width, or None."""

    def launch(self, heads: Heads, window: int, qkv: jax.Array, bias: jax.Array, pooled: jax.Array | None, *d_out: jax.Array) -> tuple[Any, ...]:
        """The arguments of ``attention_in_windows`` to its result; with the result's cotangent, to the gradient of ``qkv`` (without that of ``pooled``), an
        array [..., 3 D] float32 whose sum over all but the last axis is the gradient of ``bias``, and the gradient of ``pooled`` or None.
        """


KERNELS: Mapping[str, MapKernels] = MappingProxyType({"pallas_tpu": maps_tpu, "pallas_gpu": maps_gpu})
"""By the names of the backends of ``attention`` whose kernels they are."""


def attention_in_windows(
    qkv: jax.Array, bias: jax.Array, heads: int, window: int, pooled: jax.Array | None = None, *, implementation: str | None = None
) -> jax.Array:
    """Attention of every pixel to all pixels of its window, with ``H ** -0.5`` as the scale of the scores.

    Where the map ends within a window, the window goes on with the bias: the projection of the zeros with which the reference pads its input. Images are
    sharded over the mesh that is set (core/sharding.py).

    Args:
        qkv: [B, h, w, 3 D], float32 or bfloat16: queries, keys and values, each with its heads side by side.
        bias: [3 D], of the projection.
        heads: N.
        window: side of the windows in pixels. No kernels take pooled queries with windows of an odd side.
        pooled: [B, h // 2, w // 2, D], queries instead of those in ``qkv``: one for each 2 x 2 pixels.
        implementation: a name in ``BACKENDS``; None takes that of ``use_attention``, or else the kernels of the platform, if they can.

    Returns:
        [B, h, w, D] in qkv's dtype; with ``pooled``, its shape.
    """
    b, h, w, width = qkv.shape
    size = width // 3 // heads
    what = Heads(heads, 1, size, size, size**-0.5)
    bias = bias.astype(qkv.dtype)
    name = _choose(implementation or use_attention.value, platform(), (h, w), window, what, pooled is not None, qkv.dtype)
    if name is None or name not in KERNELS:
        return _by_rows(qkv, bias, what, window, pooled, name)
    run = partial(_in_windows, KERNELS[name].launch, what, window)
    mesh, images = current_mesh(), PartitionSpec(mesh_axes(IMAGES, b))
    if mesh is None:
        return run(qkv, bias, pooled)
    # the kernels do not say which of their results vary along which axis, so that cannot be checked
    return jax.shard_map(run, mesh=mesh, in_specs=(images, PartitionSpec(), images), out_specs=images, check_vma=False)(qkv, bias, pooled)


@lru_cache(maxsize=256)
def _choose(name: str | None, platform: str, size: tuple[int, int], window: int, heads: Heads, pooled: bool, dtype: Any) -> str | None:
    """The name of the kernels that compute such maps, or what to ask ``attention`` for. Each choice is logged once."""
    kernels = name or {"tpu": "pallas_tpu", "gpu": "pallas_gpu"}.get(platform, "")
    reason = KERNELS[kernels].why_not(size, window, heads, pooled, dtype) if kernels in KERNELS else f"there are no kernels for {name or platform}"
    if pooled and window % 2:
        reason = "the kernels pool no windows of an odd side"
    what = f"{size[0]} x {size[1]} in windows of {window}, {heads.number} heads of {heads.size}, {jnp.dtype(dtype).name}"
    _LOG.info("attention in a map of %s: %s", what, kernels if reason is None else f"as rows, since {reason}")
    return kernels if reason is None else name


def _by_rows(qkv: jax.Array, bias: jax.Array, heads: Heads, window: int, pooled: jax.Array | None, implementation: str | None) -> jax.Array:
    """The same by ``attention``, with each window a row of its batch."""
    features = heads.number * heads.size
    q, k, v = jnp.split(partition(qkv, window, bias), 3, axis=-1)
    if pooled is not None:
        q = partition(pooled, window // 2, bias[:features])
    rows = [a.reshape(a.shape[0], -1, heads.number, heads.size) for a in (q, k, v)]
    out = attention(rows[0], rows[1], rows[2], axes=(IMAGES, None, None), implementation=implementation).reshape(q.shape)
    height, width = (qkv if pooled is None else pooled).shape[1:3]
    return merge(out, (height, width))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _in_windows(launch: Any, heads: Heads, window: int, qkv: jax.Array, bias: jax.Array, pooled: jax.Array | None) -> jax.Array:
    out: jax.Array = launch(heads, window, qkv, bias, pooled)[0]
    return out


def _forward(launch: Any, heads: Heads, window: int, qkv: jax.Array, bias: jax.Array, pooled: jax.Array | None) -> tuple[jax.Array, tuple[Any, ...]]:
    return _in_windows(launch, heads, window, qkv, bias, pooled), (qkv, bias, pooled)


def _backward(launch: Any, heads: Heads, window: int, saved: tuple[Any, ...], d_out: jax.Array) -> tuple[Any, ...]:
    d_qkv, sums, d_pooled = launch(heads, window, *saved, d_out)
    return d_qkv, jnp.sum(sums, axis=tuple(range(sums.ndim - 1))).astype(d_qkv.dtype), d_pooled


_in_windows.defvjp(_forward, _backward)
