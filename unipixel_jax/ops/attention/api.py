"""The attention contract: GQA without repeating keys, structured masks, float32 softmax, a backend chosen by platform and shape, sharded over the mesh
that is set.

B batch, T query length, S key length, N query heads, K key heads (N a multiple of K), H head size, V value size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from unipixel_jax.core.axes import HEADS, Axes
from unipixel_jax.core.platform import platform
from unipixel_jax.core.sharding import current_mesh, mesh_axes
from unipixel_jax.ops.attention.choice import backend_for, check
from unipixel_jax.ops.attention.dropout import WeightDropout
from unipixel_jax.ops.attention.mask import AttnMask
from unipixel_jax.ops.attention.sharded import AttentionSharding, Segments, check_sharding, join, on_every_device, over_all_keys
from unipixel_jax.ops.attention.spec import Spec


class Keys(NamedTuple):
    """A set of keys with their values.

    Attributes:
        k: [B, S, K, H], the queries' dtype.
        v: [B, S, K, V], the same dtype.
        mask: who sees whom; None: all see all.
        dropout: of the weights, while training.
    """

    k: jax.Array
    v: jax.Array
    mask: AttnMask | None = None
    dropout: WeightDropout | None = None


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: AttnMask | None = None,
    *,
    axes: Axes = (None, None, HEADS),
    sharding: AttentionSharding | None = None,
    scale: float | None = None,
    dropout: WeightDropout | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """``softmax(q k^T * scale) v`` over the visible keys.

    Args:
        q: [B, T, N, H], float32 or bfloat16.
        k: [B, S, K, H], q's dtype.
        v: [B, S, K, V], q's dtype.
        mask: who sees whom; None: all see all. A query with no visible key gives zeros and passes zero gradients.
        axes: logical names of q's batch, length and heads, by which they are sharded over the mesh that is set (core/sharding.py).
        sharding: another sharding, over any mesh. A causal mask over a sharded sequence needs as many queries as keys.
        scale: default ``H ** -0.5``.
        dropout: of the weights, while training.
        implementation: a name in ``BACKENDS``; None takes that of ``use_attention``, or else picks by platform and shape (``choose``).

    Returns:
        [B, T, N, V] in q's dtype.

    Raises:
        ValueError: shapes or dtypes that do not fit together, or that ``sharding`` does not fit; the message names both sides.
        UserError: an unknown implementation, or one that cannot do this, with the reason.
    """
    return joint_attention(q, (Keys(k, v, mask, dropout),), axes=axes, sharding=sharding, scale=scale, implementation=implementation)


def joint_attention(
    q: jax.Array,
    sets: Sequence[Keys],
    *,
    axes: Axes = (None, None, HEADS),
    sharding: AttentionSharding | None = None,
    scale: float | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """``attention`` with one softmax over several sets of keys, none of which is copied to be beside another.

    No gradient is computed of queries, or of a set's keys, that are constants (``stop_gradient``). Several sets take no sharded sequence.

    Args:
        q: [B, T, N, H], float32 or bfloat16.
        sets: the keys; all have the same sizes but for their length.
        axes, sharding, scale, implementation: as in ``attention``.

    Returns:
        [B, T, N, V] in q's dtype.

    Raises:
        ValueError: see ``attention``.
        UserError: see ``attention``; cuDNN takes a single set.
    """
    for one in sets:
        check(q, one.k, one.v, one.mask or AttnMask(), one.dropout)
    ks, vs, dropouts = (tuple(values) for values in zip(*((one.k, one.v, one.dropout) for one in sets), strict=True))
    if sharding is None and (mesh := current_mesh()) is not None:
        sequence = _sequence(axes[1], q, ks[0]) if len(sets) == 1 else None
        sharding = AttentionSharding(mesh, mesh_axes(axes[0], q.shape[0]), mesh_axes(axes[2], q.shape[2]), sequence)
        ks, vs = (tuple(_enough_heads(a, sharding) for a in arrays) for arrays in (ks, vs))
    masks = [(one.mask or AttnMask()).without_lengths(q.shape[1], one.k.shape[1]) for one in sets]
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    where = platform() if sharding is None else sharding.platform
    sequence = None if sharding is None else sharding.sequence
    joined = len(sets) > 1 or sequence is not None

    def local(
        q: jax.Array,
        ks: tuple[jax.Array, ...],
        vs: tuple[jax.Array, ...],
        segments: tuple[Segments | None, ...],
        dropouts: tuple[WeightDropout | None, ...],
    ) -> jax.Array:
        """One device's queries [b, t, n, H] with all keys; its own are [b, s, k, H]."""
        q = rearrange(q, "b t (k g) h -> b k g t h", k=ks[0].shape[2])
        ks, vs = (tuple(a.swapaxes(1, 2) for a in arrays) for arrays in (ks, vs))

        def attend(k: jax.Array, v: jax.Array, mask: AttnMask, dropout: WeightDropout | None = None) -> tuple[jax.Array, jax.Array]:
            return backend_for(Spec.of(q, k, v, mask, dropout, where, joined), implementation).attend(q, k, v, mask, scale, dropout)

        if sequence is not None and sharding is not None:
            own = segments[0] or (jnp.ones((q.shape[0], q.shape[3]), jnp.int32), jnp.ones((q.shape[0], ks[0].shape[2]), jnp.int32))
            out = over_all_keys(attend, ks[0], vs[0], own, masks[0].causal, sharding)
        else:
            rules = [mask.with_segments(own) for mask, own in zip(masks, segments, strict=True)]
            found = [attend(*one) for one in zip(ks, vs, rules, dropouts, strict=True)]
            out = found[0][0] if len(found) == 1 else reduce(join, ((part.astype(jnp.float32), lse) for part, lse in found))[0]
        return rearrange(out.astype(q.dtype), "b k g t v -> b t (k g) v")

    segments = tuple(mask.segments for mask in masks)
    if sharding is None:
        return local(q, ks, vs, segments, dropouts)
    for k, mask, dropout in zip(ks, masks, dropouts, strict=True):
        check_sharding(q, k, sharding, mask.causal, dropout)
    return on_every_device(local, sharding)(q, ks, vs, segments, dropouts)


def _sequence(name: str | None, q: jax.Array, k: jax.Array) -> str | None:
    """The mesh axis over which queries and keys are sharded by position, or None."""
    axes = mesh_axes(name, q.shape[1])
    return axes[0] if axes and q.shape[1] == k.shape[1] else None


def _enough_heads(a: jax.Array, sharding: AttentionSharding) -> jax.Array:
    """Keys or values [B, S, K, H] with each head repeated as often as it takes for every device to have one."""
    devices = math.prod(sharding.mesh.shape[axis] for axis in sharding.heads)
    return a if a.shape[2] % devices == 0 else jnp.repeat(a, devices // a.shape[2], axis=2)
