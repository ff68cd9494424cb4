"""Qwen2.5-VL's vision tower (transformers 4.53, Qwen2_5_VisionTransformerPretrainedModel).

Patches stay in the order in which they arrive (tokens row by row, the four patches of a token together). Attention runs over groups of patches,
windows in most blocks and whole frames in a few, which host-made index tables gather into dense rows and scatter back.

P patches (padded), M = P / 4 merged tokens, D width, N heads, H head size, G groups, C patches a group.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
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

    def project(self, x: jax.Array, rope: tuple[jax.Array, jax.Array]) -> jax.Array:
        """x [P, D] to [P, 3, N, H], queries and keys rotated by ``rope``, cosines and sines [P, H / 2]."""
        q, k, v = jnp.unstack(self.qkv(x).reshape(x.shape[0], 3, self.num_heads, -1), axis=1)
        return jnp.stack([rotate_half(q, *rope), rotate_half(k, *rope), v], axis=1)


class Block(nnx.Module):
    """One pre-normalised layer."""

    def __init__(self, c: VisionConfig, rngs: nnx.Rngs) -> None:
        self.norm1 = RMSNorm(c.hidden_size, rngs)
        self.attn = Attention(c, rngs)
        self.norm2 = RMSNorm(c.hidden_size, rngs)
        self.mlp = SwiGlu(c.hidden_size, c.intermediate_size, rngs, bias=True)


class Merger(nnx.Module):
    """Joins the four patches of a token and projects them to the language model's width."""

    def __init__(self, c: VisionConfig, rngs: nnx.Rngs) -> None:
        self.norm = RMSNorm(c.hidden_size, rngs)
        self.mlp = Mlp(c.merge_dim, c.merge_dim, c.out_hidden_size, gelu, rngs)


class VisionTower(nnx.Module):
    """Patches to language-model tokens."""

    def __init__(self, c: VisionConfig, rngs: nnx.Rngs) -> None:
        self.patch_embed = Linear(c.patch_dim, c.hidden_size, (EMBED, PATCH), rngs, bias=False)
        self.blocks = stacking.stack(lambda r: Block(c, r), c.depth, rngs)
        self.merger = Merger(c, rngs)
        self.config = c

    def __call__(self, patches: jax.Array, tables: VisionTables, remat: Remat = "none") -> tuple[jax.Array, jax.Array]:
        """Encode patches.

        Args:
            patches: [P, patch_dim]; its dtype is the compute dtype. Padding patches may hold anything: no table names them.
            tables: see batch.py.
            remat: what the backward pass computes again (core/stacking.py).

        Returns:
            [M, out_hidden_size] tokens, and [M, 4 D] the merger MLP's input (what `<|mem|>` tokens are averaged from).
        """
        c = self.config
        angles = grid_angles(tables.rope, c.hidden_size // c.num_heads)
        rope = jnp.cos(angles), jnp.sin(angles)

        def windows(qkv: jax.Array) -> jax.Array:
            return _grouped(qkv, tables.window_table, tables.window_inverse)

        def frames(qkv: jax.Array) -> jax.Array:
            return _grouped(qkv, tables.frame_table, tables.frame_inverse)

        def layer(block: Block, x: jax.Array, full: jax.Array) -> tuple[jax.Array, None]:
            out = jax.lax.cond(full, frames, windows, block.attn.project(block.norm1(x), rope))
            x = x + block.attn.proj(out.reshape(x.shape))
            return x + block.mlp(block.norm2(x)), None

        full = jnp.asarray(np.isin(np.arange(c.depth), c.fullatt_block_indexes))
        x, _ = stacking.run(layer, self.blocks, self.patch_embed(patches), full, remat)
        merger_input = self.merger.norm(x).reshape(-1, c.merge_dim)
        return self.merger.mlp(merger_input), merger_input


def _grouped(qkv: jax.Array, table: jax.Array, inverse: jax.Array) -> jax.Array:
    """qkv [P, 3, N, H]: attention inside each group of ``table``; returns [P, N, H]."""
    q, k, v = jnp.unstack(qkv.at[table].get(mode="fill", fill_value=0), axis=2)
    segments = (table < qkv.shape[0]).astype(jnp.int32)
    out = attention(q, k, v, AttnMask(q_segments=segments, kv_segments=segments), axes=(None, None, None))
    return out.reshape(-1, *out.shape[2:])[inverse]
