"""Initial weights with which a small model learns from nothing. UniPixel itself starts from Qwen2.5-VL and SAM 2.1, and needs none of this."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from unipixel_jax.models.sam2.mask_decoder import Attention
from unipixel_jax.models.unipixel import UniPixelModel

PEAK = 12.0
"""How much likelier, as a logit, the last head of the language model attends to a token itself than to one far away."""
LOW_FEATURES = 0.2
"""Size of the maps to SAM 2's low features, relative to the usual one."""


def initialize(model: UniPixelModel) -> None:
    """Change some weights of a freshly made model in place; all others keep their values.

    - Heads of the language model attend to tokens nearby. Otherwise attention begins as the mean over all tokens, in which the last few words hardly count.
    - SAM 2's neck gives small low features. Hiera ends without a norm, and features several times as large as the position codes that are added to them hide
      where a prompt points.
    - Keys of the mask decoder's attentions begin as copies of the queries, so that a position finds itself.
    """
    attention = model.text.blocks.attn
    for projection in (attention.q, attention.k):
        assert projection.bias is not None, "queries and keys of Qwen2.5 have biases"
        bias = nearby_bias(projection.bias.shape[-1], attention.head_dim)
        projection.bias.set_value(jnp.broadcast_to(bias, projection.bias.shape))
    for conv in model.sam2.neck.convs[:2]:
        conv.weight.set_value(LOW_FEATURES * conv.weight[...])
    transformer = model.sam2.mask_decoder.transformer
    attentions: list[Attention] = [transformer.final_attn]
    for layer in transformer.layers:
        attentions += [layer.self_attn, layer.token_to_image, layer.image_to_token]
    for one in attentions:
        one.k.weight.set_value(jnp.copy(one.q.weight[...]))


def nearby_bias(size: int, head_dim: int) -> jax.Array:
    """Biases of the queries, or of the keys, of heads that attend to tokens nearby.

    Rope turns a query and a key apart with distance, so the product of their biases falls from a peak, which grows from 0 in the first head to ``PEAK`` in
    the last.

    Args:
        size: of all heads together.
        head_dim: of one head.

    Returns:
        [size] float32.
    """
    heads = size // head_dim
    peaks = PEAK * jnp.arange(heads, dtype=jnp.float32) / max(heads - 1, 1)
    norm = jnp.sqrt(2 * peaks / head_dim**0.5)
    return (norm[:, None] * (jnp.arange(head_dim) < head_dim // 2).astype(jnp.float32)[None]).reshape(-1)
