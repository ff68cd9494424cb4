"""Attention over a mesh: the batch and the heads divided, and the sequence divided with its keys passed around or gathered.

Parts of a row that were computed over different keys are joined by their log-sum-exps, so any backend serves. Passing the keys from device to device is
ring attention (Liu et al., arXiv 2310.01889).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from unipixel_jax.errors import UserError
from unipixel_jax.ops.attention.choice import backend_for, check
from unipixel_jax.ops.attention.dropout import WeightDropout
from unipixel_jax.ops.attention.mask import AttnMask
from unipixel_jax.ops.attention.spec import Spec
from unipixel_jax.ops.attention.xla import FLOOR
from unipixel_jax.ops.platform import platform

Attend = Callable[[jax.Array, jax.Array, AttnMask], tuple[jax.Array, jax.Array]]
Segments = tuple[jax.Array, jax.Array]


@dataclass(frozen=True)
class AttentionSharding:
    """How a call is divided.

    Attributes:
        mesh: the devices.
        batch: mesh axes that divide the batch.
        heads: mesh axes that divide the heads of queries and keys; both numbers of heads must be multiples of their size.
        sequence: the mesh axis that divides queries and keys by position, in order, or None.
        keys: "ring" passes the keys from device to device while computing and never holds them all; "gather" collects them first, in one transfer.
    """

    mesh: Mesh | AbstractMesh
    batch: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    sequence: str | None = None
    keys: Literal["ring", "gather"] = "ring"


def sharded_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: AttnMask | None = None,
    *,
    sharding: AttentionSharding,
    scale: float | None = None,
    dropout: WeightDropout | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """``attention`` of whole arrays, divided over a mesh. Arguments and result as there.

    A causal mask with a divided sequence needs as many queries as keys.

    Raises:
        ValueError: as there, a length that its mesh axes do not divide, or dropout with a divided sequence.
        UserError: cuDNN with a divided sequence.
    """
    mask = mask or AttnMask()
    check(q, k, v, mask, dropout)
    _check_division(q, k, sharding, mask.causal)
    if sharding.sequence is not None and implementation == "cudnn":
        raise UserError("cudnn does not give the log-sum-exp by which parts of a divided sequence are joined: take pallas_gpu")
    if sharding.sequence is not None and dropout is not None:
        raise ValueError(f"weights are dropped by their place in the whole row, which mesh axis {sharding.sequence!r} divides: divide other axes")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    mask = mask.without_lengths(q.shape[1], k.shape[1])
    rows = PartitionSpec(sharding.batch, sharding.sequence)
    data = PartitionSpec(sharding.batch, sharding.sequence, sharding.heads)
    seeds = PartitionSpec(sharding.batch, sharding.heads)

    def local(q: jax.Array, k: jax.Array, v: jax.Array, segments: Segments | None, dropout: WeightDropout | None) -> jax.Array:
        return _local(q, k, v, segments, dropout, mask.causal, scale, implementation, sharding)

    # the kernels do not say which of their results vary along which axis, so that cannot be checked
    run = jax.shard_map(local, mesh=sharding.mesh, in_specs=(data, data, data, rows, seeds), out_specs=data, check_vma=False)
    return run(q, k, v, mask.segments, dropout)


def _local(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segments: Segments | None,
    dropout: WeightDropout | None,
    causal: bool,
    scale: float,
    implementation: str | None,
    sharding: AttentionSharding,
) -> jax.Array:
    """One device's queries [b, t, n, H] with all keys; its own are [b, s, k, H]."""
    (b, t, n, h), kh, axis = q.shape, k.shape[2], sharding.sequence
    q, k, v = q.reshape(b, t, kh, n // kh, h).transpose(0, 2, 3, 1, 4), k.swapaxes(1, 2), v.swapaxes(1, 2)
    mesh = sharding.mesh
    where = platform(mesh.devices.flat[0] if isinstance(mesh, Mesh) else mesh.abstract_device)

    def attend(k: jax.Array, v: jax.Array, mask: AttnMask) -> tuple[jax.Array, jax.Array]:
        spec = Spec(b, t, k.shape[2], n, kh, h, v.shape[-1], jnp.dtype(q.dtype), mask.causal, mask.segments is not None, where, dropout is not None)
        out, lse = backend_for(spec, implementation).attend(q, k, v, mask, scale, dropout)
        return out.astype(jnp.float32), lse

    if axis is None:
        out, _ = attend(k, v, AttnMask(causal, *(segments or ())))
    else:
        own = segments or (jnp.ones((b, t), jnp.int32), jnp.ones((b, k.shape[2]), jnp.int32))
        others = _ring if sharding.keys == "ring" else _gathered
        out, _ = _join(attend(k, v, AttnMask(causal, *own)), others(attend, k, v, own, causal, axis))
    return out.transpose(0, 3, 1, 2, 4).reshape(b, t, n, v.shape[-1]).astype(q.dtype)


def _ring(attend: Attend, k: jax.Array, v: jax.Array, segments: Segments, causal: bool, axis: str) -> tuple[jax.Array, jax.Array]:
    """The keys of all other devices, which come by one after the other: a device sees those of its predecessors first."""
    size, own = jax.lax.axis_size(axis), jax.lax.axis_index(axis)
    onward = [(i, (i + 1) % size) for i in range(size)]

    def step(carry: tuple, distance: jax.Array) -> tuple[tuple, None]:
        blocks, sum_so_far = carry
        blocks = jax.tree.map(lambda a: jax.lax.ppermute(a, axis, onward), blocks)
        k, v, kv_segments = blocks
        seen = distance <= own if causal else jnp.bool_(True)
        return (blocks, _join(sum_so_far, attend(k, v, AttnMask(False, segments[0], jnp.where(seen, kv_segments, 0))))), None

    out, lse = jax.eval_shape(attend, k, v, AttnMask(False, *segments))
    start = (jnp.zeros(out.shape, out.dtype), jnp.full(lse.shape, FLOOR, lse.dtype))
    (_, result), _ = jax.lax.scan(step, ((k, v, segments[1]), start), jnp.arange(1, size))
    return result


def _gathered(attend: Attend, k: jax.Array, v: jax.Array, segments: Segments, causal: bool, axis: str) -> tuple[jax.Array, jax.Array]:
    """The keys of all other devices at once."""
    own, length = jax.lax.axis_index(axis), k.shape[2]
    k, v = (jax.lax.all_gather(a, axis, axis=2, tiled=True) for a in (k, v))
    device = jnp.arange(k.shape[2]) // length
    seen = device < own if causal else device != own
    kv_segments = jax.lax.all_gather(segments[1], axis, axis=1, tiled=True)
    return attend(k, v, AttnMask(False, segments[0], jnp.where(seen[None], kv_segments, 0)))


def _join(a: tuple[jax.Array, jax.Array], b: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Attention over the keys of both parts, from what each gives alone."""
    lse = jnp.logaddexp(a[1], b[1])
    return a[0] * jnp.exp(a[1] - lse)[..., None] + b[0] * jnp.exp(b[1] - lse)[..., None], lse


def _check_division(q: jax.Array, k: jax.Array, sharding: AttentionSharding, causal: bool) -> None:
    size = sharding.mesh.shape
    batch, heads = (math.prod(size[axis] for axis in axes) for axes in (sharding.batch, sharding.heads))
    sequence = size[sharding.sequence] if sharding.sequence else 1
    for name, length, parts, axes in (
        ("batch", q.shape[0], batch, sharding.batch),
        ("number of query heads", q.shape[2], heads, sharding.heads),
        ("number of key heads", k.shape[2], heads, sharding.heads),
        ("length of q", q.shape[1], sequence, (sharding.sequence,)),
        ("length of k", k.shape[1], sequence, (sharding.sequence,)),
    ):
        if length % parts:
            raise ValueError(f"the {name} is {length}, which the {parts} devices of mesh axes {axes} do not divide: pad it, or divide along fewer axes")
    if causal and sequence > 1 and q.shape[1] != k.shape[1]:
        raise ValueError(f"a causal mask over a divided sequence needs as many queries as keys, got q {q.shape} and k {k.shape}")
