"""The attention contract: GQA without repeating keys, structured masks, float32 softmax, a backend chosen by platform and shape, sharded over the mesh
that is set.

B batch, T query length, S key length, N query heads, K key heads (N a multiple of K), H head size, V value size.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from einops import rearrange

from unipixel_jax.core.axes import HEADS, Axes
from unipixel_jax.core.sharding import current_mesh, mesh_axes
from unipixel_jax.ops.attention.choice import backend_for, check
from unipixel_jax.ops.attention.dropout import WeightDropout
from unipixel_jax.ops.attention.mask import AttnMask
from unipixel_jax.ops.attention.sharded import AttentionSharding, Segments, check_sharding, on_every_device, over_all_keys
from unipixel_jax.ops.attention.spec import Spec
from unipixel_jax.ops.platform import platform


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
    mask = mask or AttnMask()
    check(q, k, v, mask, dropout)
    if sharding is None and (mesh := current_mesh()) is not None:
        sharding = AttentionSharding(mesh, mesh_axes(axes[0], q.shape[0]), mesh_axes(axes[2], q.shape[2]), _sequence(axes[1], q, k))
        k, v = (_enough_heads(a, sharding) for a in (k, v))
    mask = mask.without_lengths(q.shape[1], k.shape[1])
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    where = platform() if sharding is None else sharding.platform

    def local(q: jax.Array, k: jax.Array, v: jax.Array, segments: Segments | None, dropout: WeightDropout | None) -> jax.Array:
        """One device's queries [b, t, n, H] with all keys; its own are [b, s, k, H]."""
        q, k, v = rearrange(q, "b t (k g) h -> b k g t h", k=k.shape[2]), k.swapaxes(1, 2), v.swapaxes(1, 2)

        def attend(k: jax.Array, v: jax.Array, mask: AttnMask) -> tuple[jax.Array, jax.Array]:
            return backend_for(Spec.of(q, k, v, mask, dropout, where), implementation).attend(q, k, v, mask, scale, dropout)

        if sharding is None or sharding.sequence is None:
            out, _ = attend(k, v, AttnMask(mask.causal, *(segments or ())))
        else:
            segments = segments or (jnp.ones((q.shape[0], q.shape[3]), jnp.int32), jnp.ones((q.shape[0], k.shape[2]), jnp.int32))
            out = over_all_keys(attend, k, v, segments, mask.causal, sharding).astype(q.dtype)
        return rearrange(out, "b k g t v -> b t (k g) v")

    if sharding is None:
        return local(q, k, v, mask.segments, dropout)
    check_sharding(q, k, sharding, mask.causal, dropout, implementation)
    return on_every_device(local, sharding)(q, k, v, mask.segments, dropout)


def _sequence(name: str | None, q: jax.Array, k: jax.Array) -> str | None:
    """The mesh axis over which queries and keys are sharded by position, or None."""
    axes = mesh_axes(name, q.shape[1])
    return axes[0] if axes and q.shape[1] == k.shape[1] else None


def _enough_heads(a: jax.Array, sharding: AttentionSharding) -> jax.Array:
    """Keys or values [B, S, K, H] with each head repeated as often as it takes for every device to have one."""
    devices = math.prod(sharding.mesh.shape[axis] for axis in sharding.heads)
    return a if a.shape[2] % devices == 0 else jnp.repeat(a, devices // a.shape[2], axis=2)
