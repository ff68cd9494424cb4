"""cuDNN's fused attention behind our contract, by way of ``jax.nn.dot_product_attention``.

Segments go in as a [B, 1, T, S] mask, which cuDNN reads as a bias in q's dtype (and gives a gradient of that size to): right, but not cheap.

B batch, K key heads, G query heads per key head, T query length, S key length, H head size.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from unipixel_jax.errors import UserError
from unipixel_jax.ops.attention.dropout import WeightDropout
from unipixel_jax.ops.attention.mask import AttnMask
from unipixel_jax.ops.attention.spec import Spec

HEAD_SIZE_LIMIT = 128
"""What every card since Ampere takes; only Hopper and later go to 256."""


def why_not(spec: Spec) -> str | None:
    """The reason why ``attend`` cannot compute this, or None if it can."""
    if spec.platform != "gpu":
        return f"cudnn runs on gpu, not on {spec.platform}"
    if jnp.dtype(spec.dtype) != jnp.bfloat16:
        return f"cudnn takes bfloat16, got {jnp.dtype(spec.dtype)}"
    if spec.head_size > HEAD_SIZE_LIMIT or spec.head_size % 8:
        return f"cudnn takes head sizes that are multiples of 8 up to {HEAD_SIZE_LIMIT}, got {spec.head_size}"
    if spec.dropout:
        return "cudnn drops other weights than the kernels here would, and does not say which"
    if spec.joined:
        return "cudnn does not give the log-sum-exp by which parts over different keys are joined"
    if spec.value_size != spec.head_size:
        return f"cudnn takes values as wide as the heads, got head size {spec.head_size} and value size {spec.value_size}"
    if spec.segmented and (spec.queries % 2 or spec.keys % 2):
        return f"cudnn's gradient with a mask takes even lengths, got {spec.queries} queries and {spec.keys} keys"
    return None


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: AttnMask, scale: float, dropout: WeightDropout | None = None) -> tuple[jax.Array, jax.Array]:
    """Compute attention by cuDNN; unlike ``xla.attend`` it gives no log-sum-exp.

    Args:
        q: [B, K, G, T, H] bfloat16.
        k: [B, K, S, H] bfloat16.
        v: [B, K, S, H] bfloat16.
        mask: who sees whom.
        scale: of the scores.

    Returns:
        [B, K, G, T, H] bfloat16, zero in rows with no visible key; [B, K, G, T] NaN, because JAX gives cuDNN's log-sum-exp rounded to bfloat16 and
        without a gradient: who joins parts by it must see that it is not there.

    Raises:
        UserError: cuDNN is not installed.
    """
    (b, kh, g, t, h), s = q.shape, k.shape[2]
    seen = None if mask.segments is None else mask.visible(jnp.arange(t), jnp.arange(s))
    try:
        out = jax.nn.dot_product_attention(
            q.reshape(b, kh * g, t, h).swapaxes(1, 2),
            k.swapaxes(1, 2),
            v.swapaxes(1, 2),
            mask=None if seen is None else seen[:, :, 0],
            scale=scale,
            is_causal=mask.causal,
            implementation="cudnn",
        )
    except RuntimeError as error:
        if "cuDNN not found" not in str(error):
            raise
        raise UserError("cuDNN is not here: pip install nvidia-cudnn-cu12 (enough to plan without a card)") from None
    out = out.swapaxes(1, 2).reshape(q.shape)
    if seen is not None:
        # cuDNN spreads a row that sees nothing over keys that it must not see
        out = jnp.where(jnp.any(seen, axis=-1)[..., None], out, jnp.zeros_like(out))
    return out, jnp.full((b, kh, g, t), jnp.nan, jnp.float32)
