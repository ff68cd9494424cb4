"""SAM's prompt encoder (arXiv 2304.02643, section 3; reference: sam2/modeling/sam/prompt_encoder.py).

B prompts, P points, D width, g side of the feature grid. Coordinates are (x, y) in pixels of the square image.
Labels: -1 padding, 0 negative point, 1 positive point, 2 and 3 a box's top-left and bottom-right corner.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from unipixel_jax.config import Sam2Config
from unipixel_jax.core.axes import CHANNELS, EMBED
from unipixel_jax.core.params import declare, lecun, unit_normal, zeros
from unipixel_jax.models.layers import LayerNorm, Linear, gelu
from unipixel_jax.models.sam2.position import fourier
from unipixel_jax.ops.conv import conv_patches

MASK_CHANNELS = 16
"""The channels between the convolutions of a mask prompt, in all published sizes."""


class PatchConv(nnx.Module):
    """A 2x2 convolution with stride 2."""

    def __init__(self, d_in: int, d_out: int, rngs: nnx.Rngs) -> None:
        self.weight = declare(rngs, (d_out, d_in, 2, 2), (CHANNELS, CHANNELS, None, None), lecun)
        self.bias = declare(rngs, (d_out,), (CHANNELS,), zeros)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map x [B, 2h, 2w, d_in] to [B, h, w, d_out] in the same dtype."""
        return conv_patches(x, self.weight[...], self.bias[...])


class MaskPromptEmbedding(nnx.Module):
    """The embedding of a mask prompt: convolutions from mask logits to the feature grid."""

    def __init__(self, d: int, rngs: nnx.Rngs) -> None:
        self.conv1 = PatchConv(1, MASK_CHANNELS // 4, rngs)
        self.norm1 = LayerNorm(MASK_CHANNELS // 4, 1e-6, rngs)
        self.conv2 = PatchConv(MASK_CHANNELS // 4, MASK_CHANNELS, rngs)
        self.norm2 = LayerNorm(MASK_CHANNELS, 1e-6, rngs)
        self.proj = Linear(MASK_CHANNELS, d, (EMBED, CHANNELS), rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map mask logits [B, 4g, 4g, 1] to embeddings [B, g, g, D] in the same dtype."""
        return self.proj(gelu(self.norm2(self.conv2(gelu(self.norm1(self.conv1(x)))))))


class PromptEncoder(nnx.Module):
    """The prompt encoder, which maps points, boxes and masks to embeddings of the mask decoder's width."""

    def __init__(self, c: Sam2Config, rngs: nnx.Rngs) -> None:
        d = c.d_model
        self.pe_matrix = declare(rngs, (2, d // 2), (None, CHANNELS), unit_normal)
        self.point_embed = declare(rngs, (4, d), (None, EMBED), unit_normal)
        self.not_a_point_embed = declare(rngs, (1, d), (None, EMBED), unit_normal)
        self.no_mask_embed = declare(rngs, (1, d), (None, EMBED), unit_normal)
        self.mask_down = MaskPromptEmbedding(d, rngs)
        self.config = c

    def points(self, coords: jax.Array, labels: jax.Array) -> jax.Array:
        """Return embeddings [B, P, D] float32 of points with coords [B, P, 2] float32 and labels [B, P] integers; that of padding has no position."""
        table, nothing = self.point_embed[...].astype(jnp.float32), self.not_a_point_embed[...].astype(jnp.float32)
        placed = fourier((coords + 0.5) / self.config.image_size, self.pe_matrix[...]) + table[jnp.maximum(labels, 0)]
        return jnp.where((labels == -1)[..., None], nothing[None], placed)

    def masks(self, logits: jax.Array) -> jax.Array:
        """Map mask logits [B, 4g, 4g] to dense embeddings [B, g, g, D] in the same dtype."""
        return self.mask_down(logits[..., None])

    def no_mask(self) -> jax.Array:
        """Return the dense embedding [1, 1, 1, D] of a prompt without a mask, in the weight's dtype."""
        return self.no_mask_embed[...][None, None]

    def dense_pe(self) -> jax.Array:
        """Return the position code [g * g, D] float32 of the feature grid."""
        g = self.config.grid
        at = (jnp.arange(g, dtype=jnp.float32) + 0.5) / g
        x, y = jnp.broadcast_to(at[None], (g, g)), jnp.broadcast_to(at[:, None], (g, g))
        return fourier(jnp.stack([x, y], axis=-1).reshape(g * g, 2), self.pe_matrix[...])
