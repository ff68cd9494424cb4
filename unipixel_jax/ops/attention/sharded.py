"""Attention over a mesh: the batch and the heads sharded, and the sequence sharded with its keys passed around a ring or all-gathered.

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

from unipixel_jax.core.platform import platform
from unipixel_jax.core.sharding import BATCH
from unipixel_jax.ops.attention.dropout import WeightDropout
from unipixel_jax.ops.attention.mask import AttnMask
from unipixel_jax.ops.attention.xla import FLOOR

Attend = Callable[[jax.Array, jax.Array, AttnMask], tuple[jax.Array, jax.Array]]
"""Keys [b, k, s, H], values [b, k, s, V] and a mask to a device's result [b, k, g, t, V] and its log-sum-exp [b, k, g, t]."""
Segments = tuple[jax.Array, jax.Array]
Local = Callable[
    [jax.Array, tuple[jax.Array, ...], tuple[jax.Array, ...], tuple[Segments | None, ...], tuple[WeightDropout | None, ...]], jax.Array
]
"""One device's share: queries [b, t, n, H] and, for each set of keys, keys [b, s, k, H], values [b, s, k, V], segments and dropout, to [b, t, n, V]."""


@dataclass(frozen=True)
class AttentionSharding:
    """How the arrays of a call are sharded.

    Attributes:
        mesh: the devices.
        batch: mesh axes over which the batch is sharded.
        heads: mesh axes over which the heads of queries and keys are sharded; both numbers of heads must be multiples of their size.
        sequence: the mesh axis over which queries and keys are sharded by position, in order, or None.
        keys: "ring" passes the keys from device to device while computing and never holds them all; "gather" all-gathers them first.
    """

    mesh: Mesh | AbstractMesh
    batch: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    sequence: str | None = None
    keys: Literal["ring", "gather"] = "ring"

    @property
    def platform(self) -> str:
        """The platform of the mesh's devices: "cpu", "gpu" or "tpu"."""
        return platform(self.mesh.devices.flat[0] if isinstance(self.mesh, Mesh) else self.mesh.abstract_device)


def on_every_device(local: Local, sharding: AttentionSharding) -> Local:
    """``local`` for whole arrays, each device with its share."""
    # Gradients are summed over the axes that a specification leaves out, which copies them even where there is one device along these axes.
    alone = tuple(axis for axis, size in sharding.mesh.shape.items() if size == 1 and axis not in (*BATCH, *sharding.heads, sharding.sequence, *sharding.batch))
    batch = (*sharding.batch, *alone)
    rows = PartitionSpec(batch, sharding.sequence)
    data = PartitionSpec(batch, sharding.sequence, sharding.heads)
    seeds = PartitionSpec(batch, sharding.heads)
    # the kernels do not say which of their results vary along which axis, so that cannot be checked
    return jax.shard_map(local, mesh=sharding.mesh, in_specs=(data, data, data, rows, seeds), out_specs=data, check_vma=False)


def over_all_keys(attend: Attend, k: jax.Array, v: jax.Array, segments: Segments, causal: bool, sharding: AttentionSharding) -> jax.Array:
    """A device's queries with the keys of all devices over which the sequence is sharded: [b, k, g, t, V] float32. Its own keys are [b, k, s, H]."""

    def precise(k: jax.Array, v: jax.Array, mask: AttnMask) -> tuple[jax.Array, jax.Array]:
        out, lse = attend(k, v, mask)
        return out.astype(jnp.float32), lse

    assert sharding.sequence is not None, "the sequence is sharded"
    others = _ring if sharding.keys == "ring" else _gathered
    return join(precise(k, v, AttnMask(causal, *segments)), others(precise, k, v, segments, causal, sharding.sequence))[0]


def _ring(attend: Attend, k: jax.Array, v: jax.Array, segments: Segments, causal: bool, axis: str) -> tuple[jax.Array, jax.Array]:
    """The keys of all other devices, which come by one after the other: a device sees those of its predecessors first."""
    size, own = jax.lax.axis_size(axis), jax.lax.axis_index(axis)
    onward = [(i, (i + 1) % size) for i in range(size)]

    def step(carry: tuple, distance: jax.Array) -> tuple[tuple, None]:
        blocks, sum_so_far = carry
        blocks = jax.tree.map(lambda a: jax.lax.ppermute(a, axis, onward), blocks)
        k, v, kv_segments = blocks
        seen = distance <= own if causal else jnp.bool_(True)
        return (blocks, join(sum_so_far, attend(k, v, AttnMask(False, segments[0], jnp.where(seen, kv_segments, 0))))), None

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


def join(a: tuple[jax.Array, jax.Array], b: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Attention over the keys of both parts, from what each gives alone: results [..., V] float32 and log-sum-exps [...]."""
    lse = jnp.logaddexp(a[1], b[1])
    return a[0] * jnp.exp(a[1] - lse)[..., None] + b[0] * jnp.exp(b[1] - lse)[..., None], lse


def check_sharding(q: jax.Array, k: jax.Array, sharding: AttentionSharding, causal: bool, dropout: WeightDropout | None) -> None:
    """Check that the arrays of a call of ``attention`` can be sharded so.

    Raises:
        ValueError: a length that its mesh axes do not divide, or, where the sequence is sharded, dropout or a causal mask over other queries than keys.
    """
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
            raise ValueError(f"the {name} is {length}, which the {parts} devices of mesh axes {axes} do not divide: pad it, or shard along fewer axes")
    if causal and sequence > 1 and q.shape[1] != k.shape[1]:
        raise ValueError(f"a causal mask over a sharded sequence needs as many queries as keys, got q {q.shape} and k {k.shape}")
    if sharding.sequence is not None and dropout is not None:
        raise ValueError(f"weights are dropped by their place in the whole row, which mesh axis {sharding.sequence!r} shards: shard along other axes")
