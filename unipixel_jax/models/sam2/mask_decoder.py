"""SAM 2's mask decoder (reference: sam2/modeling/sam/mask_decoder.py and transformer.py).

Of its four mask tokens the first makes the single mask of a clear prompt. Tracking and UniPixel never ask for it: there the token takes part in attention
and makes no mask.

O prompts (objects), T tokens, P prompt tokens, g side of the feature grid, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from unipixel_jax.config import Sam2Config
from unipixel_jax.core import stacking
from unipixel_jax.core.axes import CHANNELS, EMBED, HEADS, IMAGES
from unipixel_jax.core.params import declare, unit_normal, xavier, zeros
from unipixel_jax.models.layers import LayerNorm, Linear, Mlp, Mlp3, gelu
from unipixel_jax.ops.attention import AttnMask, attention
from unipixel_jax.ops.conv import conv_transpose2

NUM_HEADS = 8
EPS = 1e-5


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DecodedMasks:
    """The masks and scores of one frame.

    Attributes:
        masks: [O, 3, 4g, 4g] float32 logits; with the single mask [O, 4, 4g, 4g], and it is the first.
        iou: [O, 3 or 4] float32, the predicted intersection over union of each mask.
        tokens: [O, 3 or 4, D] mask tokens, from which object pointers are made.
        object_score: [O] float32 logits; positive means that the object is in the frame.
    """

    masks: jax.Array
    iou: jax.Array
    tokens: jax.Array
    object_score: jax.Array


class Attention(nnx.Module):
    """Attention with separate inputs for queries, keys and values, which are projected to 1/``downsample`` of the width."""

    def __init__(self, d: int, downsample: int, rngs: nnx.Rngs) -> None:
        inner = d // downsample
        self.q = Linear(d, inner, (HEADS, EMBED), rngs, init=xavier)
        self.k = Linear(d, inner, (HEADS, EMBED), rngs, init=xavier)
        self.v = Linear(d, inner, (HEADS, EMBED), rngs, init=xavier)
        self.o = Linear(inner, d, (EMBED, HEADS), rngs, init=xavier)

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array, mask: AttnMask) -> jax.Array:
        """Attend from q [O, t, D] to k and v [O, s, D]; returns [O, t, D] in q's dtype."""
        q, k, v = (rearrange(f(x), "o t (heads d) -> o t heads d", heads=NUM_HEADS) for f, x in ((self.q, q), (self.k, k), (self.v, v)))
        out = attention(q, k, v, mask, axes=(IMAGES, None, None))
        return self.o(rearrange(out, "o t heads d -> o t (heads d)"))


class TwoWayBlock(nnx.Module):
    """A layer in which the tokens attend to themselves and to the image, and then the image attends to the tokens."""

    def __init__(self, d: int, rngs: nnx.Rngs) -> None:
        self.self_attn = Attention(d, 1, rngs)
        self.norm1 = LayerNorm(d, EPS, rngs)
        self.token_to_image = Attention(d, 2, rngs)
        self.norm2 = LayerNorm(d, EPS, rngs)
        self.mlp = Mlp(d, 2048, d, jax.nn.relu, rngs, init=xavier)
        self.norm3 = LayerNorm(d, EPS, rngs)
        self.norm4 = LayerNorm(d, EPS, rngs)
        self.image_to_token = Attention(d, 2, rngs)

    def __call__(
        self, tokens: jax.Array, image: jax.Array, token_pe: jax.Array, image_pe: jax.Array, segments: jax.Array, first: bool
    ) -> tuple[jax.Array, jax.Array]:
        """Run the layer.

        Args:
            tokens, token_pe: [O, T, D] tokens and their position codes.
            image, image_pe: [O, g * g, D] image features and their position codes.
            segments: [O, T] int32, 0 where there is no token.
            first: whether this is the first layer, whose tokens attend to themselves without position codes and without a residual.

        Returns:
            The new tokens and image features, with the same shapes and dtypes.
        """
        among = AttnMask(q_segments=segments, kv_segments=segments)
        to_tokens = AttnMask(q_segments=jnp.ones(image.shape[:2], jnp.int32), kv_segments=segments)
        if first:
            tokens = self.self_attn(tokens, tokens, tokens, among)
        else:
            q = tokens + token_pe
            tokens = tokens + self.self_attn(q, q, tokens, among)
        tokens = self.norm1(tokens)
        tokens = self.norm2(tokens + self.token_to_image(tokens + token_pe, image + image_pe, image, AttnMask()))
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = self.norm4(image + self.image_to_token(image + image_pe, tokens + token_pe, tokens, to_tokens))
        return tokens, image


class TwoWayTransformer(nnx.Module):
    """Two layers, after which the tokens attend to the image once more."""

    def __init__(self, d: int, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List([TwoWayBlock(d, rngs) for _ in range(2)])
        self.final_attn = Attention(d, 2, rngs)
        self.norm_final = LayerNorm(d, EPS, rngs)

    def __call__(self, token_pe: jax.Array, image: jax.Array, image_pe: jax.Array, segments: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return tokens [O, T, D] and image features [O, g * g, D] after mutual attention; arguments as in ``TwoWayBlock``."""
        tokens = token_pe  # as in the reference, the tokens are their own position codes
        for i, layer in enumerate(self.layers):
            tokens, image = layer(tokens, image, token_pe, image_pe, segments, first=i == 0)
        tokens = tokens + self.final_attn(tokens + token_pe, image + image_pe, image, AttnMask())
        return self.norm_final(tokens), image


class Upscale(nnx.Module):
    """A transposed convolution with kernel and stride 2."""

    def __init__(self, d_in: int, d_out: int, rngs: nnx.Rngs) -> None:
        self.weight = declare(rngs, (d_in, d_out, 2, 2), (EMBED, CHANNELS, None, None), xavier)
        self.bias = declare(rngs, (d_out,), (CHANNELS,), zeros)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map x [O, h, w, d_in] to [O, 2h, 2w, d_out] in the same dtype."""
        return conv_transpose2(x, self.weight[...], self.bias[...])


class MaskDecoder(nnx.Module):
    """The mask decoder, which maps image features and a prompt to three masks with scores."""

    def __init__(self, c: Sam2Config, rngs: nnx.Rngs) -> None:
        d = c.d_model
        self.iou_token = declare(rngs, (1, d), (None, EMBED), unit_normal)
        self.mask_tokens = declare(rngs, (4, d), (None, EMBED), unit_normal)
        self.obj_score_token = declare(rngs, (1, d), (None, EMBED), unit_normal)
        self.transformer = TwoWayTransformer(d, rngs)
        self.upscale1 = Upscale(d, d // 4, rngs)
        self.upscale_norm = LayerNorm(d // 4, 1e-6, rngs)
        self.upscale2 = Upscale(d // 4, d // 8, rngs)
        self.conv_s0 = Linear(d, d // 8, (CHANNELS, EMBED), rngs)
        self.conv_s1 = Linear(d, d // 4, (CHANNELS, EMBED), rngs)
        self.hyper_mlps = stacking.stack(lambda r: Mlp3(d, d, d // 8, r, init=xavier), 4, rngs)
        self.iou_head = Mlp3(d, 256, 4, rngs, init=xavier)
        self.obj_score_head = Mlp3(d, d, 1, rngs, init=xavier)

    def __call__(
        self,
        image: jax.Array,
        image_pe: jax.Array,
        prompt: jax.Array,
        prompt_valid: jax.Array,
        high0: jax.Array,
        high1: jax.Array,
        single: bool = False,
    ) -> DecodedMasks:
        """Decode the masks of all prompts.

        Args:
            image: [O, g, g, D], with the dense prompt already added.
            image_pe: [g * g, D].
            prompt: [O, P, D] sparse prompt embeddings.
            prompt_valid: [O, P] booleans; a prompt token that is not valid has no influence.
            high0, high1: [O or 1, 4g, 4g, D/8] and [O or 1, 2g, 2g, D/4] high-resolution features of the image.
            single: make the single mask too.

        Returns:
            The masks, their scores and their tokens.
        """
        o, g, _, d = image.shape
        own = jnp.concatenate([self.obj_score_token[...], self.iou_token[...], self.mask_tokens[...]]).astype(image.dtype)
        tokens = jnp.concatenate([jnp.broadcast_to(own[None], (o, *own.shape)), prompt.astype(image.dtype)], axis=1)
        segments = jnp.concatenate([jnp.ones((o, own.shape[0]), jnp.int32), prompt_valid.astype(jnp.int32)], axis=1)
        flat = image.reshape(o, g * g, d)
        tokens, flat = self.transformer(tokens, flat, jnp.broadcast_to(image_pe.astype(image.dtype)[None], flat.shape), segments)

        x = gelu(self.upscale_norm(self.upscale1(flat.reshape(image.shape)) + high1))
        x = gelu(self.upscale2(x) + high0)
        skipped = 0 if single else 1
        mask_tokens = tokens[:, 2 + skipped : 6]
        hyper = jax.vmap(lambda mlp, token: mlp(token), in_axes=(0, 1), out_axes=1)(jax.tree.map(lambda a: a[skipped:], self.hyper_mlps), mask_tokens)
        masks = jnp.einsum("omc,ohwc->omhw", hyper, x, preferred_element_type=jnp.float32)
        iou = jax.nn.sigmoid(self.iou_head(tokens[:, 1]).astype(jnp.float32))[:, skipped:]
        return DecodedMasks(masks, iou, mask_tokens, self.obj_score_head(tokens[:, 0])[:, 0].astype(jnp.float32))
