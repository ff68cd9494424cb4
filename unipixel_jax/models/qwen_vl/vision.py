"""Qwen2.5-VL's vision tower (transformers 4.53, Qwen2_5_VisionTransformerPretrainedModel).

The host lays out the patches in the order of their windows (processing/vision_index.py), so that the layers with attention within windows, which are most,
attend within the rows of a dense batch. The few layers that attend to whole frames gather queries, keys and values into a batch of frames, and gather the
results back into the order of windows. Attention over the whole sequence, with a segment for each frame, would cost the square of all frames on every backend
that does not skip blocks (docs/attention.md).

P = W C patches (padded) in W bins of C, M = P / 4 merged tokens, D width, H head size.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from unipixel_jax.batch import VisionTables
from unipixel_jax.config import VisionConfig
from unipixel_jax.core import stacking
from unipixel_jax.core.axes import EMBED, HEADS, PATCH
from unipixel_jax.core.stacking import Remat
from unipixel_jax.models.layers import Linear, Mlp, RMSNorm, SwiGlu, gelu
from unipixel_jax.ops.attention import AttnMask, attention
from unipixel_jax.ops.rope import grid_angles, rotate_half


class Attention(nnx.Module):
    """Multi-head self-attention with one projection for q, k and v."""

    def __init__(self, c: VisionConfig, rngs: nnx.Rngs) -> None:
        self.qkv = Linear(c.hidden_size, 3 * c.hidden_size, (HEADS, EMBED), rngs)
        self.proj = Linear(c.hidden_size, c.hidden_size, (EMBED, HEADS), rngs)
        self.num_heads = c.num_heads

    def __call__(self, x: jax.Array, rope: tuple[jax.Array, jax.Array], tables: VisionTables, whole: bool) -> jax.Array:
        """Attend within windows, or within frames if ``whole``.

        Args:
            x: [P, D].
            rope: cosines and sines [P, H / 2], float32.
            tables: the index tables of the patches (batch.py).
            whole: whether to attend within frames.

        Returns:
            [P, D] in x's dtype; at padding the values are finite and have no meaning.
        """
        q, k, v = jnp.unstack(self.qkv(x).reshape(x.shape[0], 3, self.num_heads, -1), axis=1)
        q, k = rotate_half(q, *rope), rotate_half(k, *rope)
        if whole:
            segments = (tables.frame_table < x.shape[0]).astype(jnp.int32)
            q, k, v = jnp.unstack(jnp.stack([q, k, v], axis=1).at[tables.frame_table].get(mode="fill", fill_value=0), axis=2)
        else:
            segments = tables.windows
            q, k, v = (a.reshape(*segments.shape, *a.shape[1:]) for a in (q, k, v))
        out = attention(q, k, v, AttnMask(q_segments=segments, kv_segments=segments), axes=(None, None, None)).reshape(-1, x.shape[1])
        return self.proj(out[tables.frame_inverse] if whole else out)


class Block(nnx.Module):
    """A pre-normalised layer of the vision tower."""

    def __init__(self, c: VisionConfig, rngs: nnx.Rngs) -> None:
        self.norm1 = RMSNorm(c.hidden_size, rngs)
        self.attn = Attention(c, rngs)
        self.norm2 = RMSNorm(c.hidden_size, rngs)
        self.mlp = SwiGlu(c.hidden_size, c.intermediate_size, rngs, bias=True)

    def __call__(self, x: jax.Array, rope: tuple[jax.Array, jax.Array], tables: VisionTables, whole: bool) -> jax.Array:
        """Map x [P, D] to the same shape and dtype; arguments as in ``Attention``."""
        x = x + self.attn(self.norm1(x), rope, tables, whole)
        return x + self.mlp(self.norm2(x))


class Merger(nnx.Module):
    """The layer that joins the four patches of a token and projects them to the language model's width."""

    def __init__(self, c: VisionConfig, rngs: nnx.Rngs) -> None:
        self.norm = RMSNorm(c.hidden_size, rngs)
        self.mlp = Mlp(c.merge_dim, c.merge_dim, c.out_hidden_size, gelu, rngs)
        self.merge_dim = c.merge_dim

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Map x [P, D] to tokens [M, out_hidden_size]; also returns the joined patches [M, 4 D] that the two linear layers compute them from."""
        joined = self.norm(x).reshape(-1, self.merge_dim)
        return self.mlp(joined), joined


class VisionTower(nnx.Module):
    """The vision tower, which maps patches to tokens of the language model."""

    def __init__(self, c: VisionConfig, rngs: nnx.Rngs) -> None:
        self.patch_embed = Linear(c.patch_dim, c.hidden_size, (EMBED, PATCH), rngs, bias=False)
        self.blocks = stacking.stack(lambda r: Block(c, r), c.depth, rngs)
        self.merger = Merger(c, rngs)
        self.config = c

    def __call__(self, patches: jax.Array, tables: VisionTables, remat: Remat = "none") -> tuple[jax.Array, jax.Array]:
        """Encode patches.

        Args:
            patches: [P, patch_dim] in the order of ``tables``; its dtype is the compute dtype. Padding may hold any finite values, which affect no other patch.
            tables: the index tables of the patches (batch.py).
            remat: what the backward pass computes again (core/stacking.py).

        Returns:
            The tokens [M, out_hidden_size] in the same order, and the inputs of the merger's MLP [M, 4 D], whose means become `<|mem|>` tokens.
        """
        c = self.config
        angles = grid_angles(tables.rope, c.hidden_size // c.num_heads)
        rope = jnp.cos(angles), jnp.sin(angles)
        x = self.patch_embed(patches)
        for whole, layers in stacking.runs([layer in c.fullatt_block_indexes for layer in range(c.depth)]):

            def step(block: Block, x: jax.Array, _: None, whole: bool = whole) -> tuple[jax.Array, None]:
                return block(x, rope, tables, whole), None

            x, _ = stacking.run(step, self.blocks, x, remat=remat, layers=layers)
        return self.merger(x)
