"""Hiera, SAM 2's image trunk (arXiv 2306.00989; reference: sam2/modeling/backbones/hieradet.py).

The trunk has four stages, each with half the resolution and twice the width of the one before. The first block of the later stages pools; all other blocks of a
stage are equal and stacked.

B images, h and w height and width of the map, C channels.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from unipixel_jax.config import Sam2Config
from unipixel_jax.core import stacking
from unipixel_jax.core.axes import CHANNELS, EMBED, HEADS, IMAGES
from unipixel_jax.core.params import declare, lecun, zeros
from unipixel_jax.core.stacking import Remat
from unipixel_jax.models.layers import DropPath, LayerNorm, Linear, Mlp, gelu
from unipixel_jax.ops import window
from unipixel_jax.ops.attention import attention, attention_in_windows
from unipixel_jax.ops.conv import conv
from unipixel_jax.ops.resize import resize_bicubic

EPS = 1e-6
"""The epsilon of the trunk's norms."""
DROP_PATH = 0.1
"""The share of samples for which the last block is skipped while training, in all published sizes. It grows linearly from 0 at the first block."""


class PatchEmbed(nnx.Module):
    """The patch embedding: a 7x7 convolution with stride 4."""

    def __init__(self, dim: int, rngs: nnx.Rngs) -> None:
        self.weight = declare(rngs, (dim, 3, 7, 7), (EMBED, CHANNELS, None, None), lecun)
        self.bias = declare(rngs, (dim,), (EMBED,), zeros)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map images [B, 4h, 4w, 3] to [B, h, w, C] in the same dtype."""
        return conv(x, self.weight[...], self.bias[...], stride=4, padding=3)


class Attention(nnx.Module):
    """Self-attention within windows or the whole map, with optional 2x2 max pooling of the queries.

    The reference pads the map with zeros to whole windows and then projects it. The projection of zeros is the bias, so here the projected map is padded with
    the bias, and the padding costs no products. (It would add 36% more pixels at 768 pixels in the third stage's windows of 14.)
    """

    def __init__(self, dim: int, dim_out: int, num_heads: int, rngs: nnx.Rngs) -> None:
        self.qkv = Linear(dim, 3 * dim_out, (HEADS, EMBED), rngs)
        self.proj = Linear(dim_out, dim_out, (EMBED, HEADS), rngs)
        self.num_heads = num_heads

    def __call__(self, x: jax.Array, size: int, pool: bool) -> jax.Array:
        """Map x [B, h, w, C] to [B, h, w, C'], or to [B, h/2, w/2, C'] if ``pool``; ``size`` is the side of the windows, 0 for the whole map."""
        qkv, bias = self.qkv(x), self.qkv.bias
        assert bias is not None, "the projection is made with a bias"
        if size:
            pooled = _pooled_in_windows(qkv[..., : qkv.shape[-1] // 3], size, bias[...]) if pool else None
            return self.proj(attention_in_windows(qkv, bias[...], self.num_heads, size, pooled))
        q, k, v = jnp.split(qkv, 3, axis=-1)
        q = max_pool2(q) if pool else q
        heads = [a.reshape(a.shape[0], -1, self.num_heads, a.shape[-1] // self.num_heads) for a in (q, k, v)]
        return self.proj(attention(heads[0], heads[1], heads[2], axes=(IMAGES, None, None)).reshape(q.shape))


class Block(nnx.Module):
    """A pre-normalised layer; with ``entry`` it also halves the map and widens it."""

    def __init__(self, dim: int, dim_out: int, num_heads: int, entry: bool, rngs: nnx.Rngs) -> None:
        self.norm1 = LayerNorm(dim, EPS, rngs)
        self.attn = Attention(dim, dim_out, num_heads, rngs)
        self.norm2 = LayerNorm(dim_out, EPS, rngs)
        self.mlp = Mlp(dim_out, 4 * dim_out, dim_out, gelu, rngs)
        self.drop1 = DropPath()
        self.drop2 = DropPath()
        self.proj = Linear(dim, dim_out, (EMBED, EMBED), rngs) if entry else None

    def __call__(self, x: jax.Array, size: int, drop_path: float | jax.Array) -> jax.Array:
        """Map x [B, h, w, C] to the same shape, or with ``entry`` to [B, h/2, w/2, 2C].

        Args:
            x: the feature map.
            size: the side of the windows, 0 for the whole map.
            drop_path: the probability with which a sample skips each half of the layer while training, a float or float32 scalar.
        """
        y = self.norm1(x)
        shortcut = x if self.proj is None else max_pool2(self.proj(y))
        x = shortcut + self.drop1(self.attn(y, size, pool=self.proj is not None), drop_path)
        return x + self.drop2(self.mlp(self.norm2(x)), drop_path)


class Stage(nnx.Module):
    """The blocks of one resolution: ``entry`` (None in the first stage), and the stacked other blocks (None if there are none)."""

    def __init__(self, c: Sam2Config, index: int, rngs: nnx.Rngs) -> None:
        dim, heads, first = c.stage_dims[index], c.stage_heads[index], sum(c.stages[:index])
        self.entry = Block(c.stage_dims[index - 1], dim, heads, True, rngs) if index else None
        rest = c.stages[index] - (index > 0)
        self.blocks = stacking.stack(lambda r: Block(dim, dim, heads, False, r), rest, rngs) if rest else None
        # The first block of a stage still has the windows of the stage before, as in the reference.
        blocks = range(first, first + c.stages[index])
        self.windows = tuple(0 if i in c.global_att_blocks else c.window_spec[max(index - (i == first), 0)] for i in blocks)
        self.drop_path = tuple(np.linspace(0, DROP_PATH, sum(c.stages))[first : first + c.stages[index]].tolist())

    def __call__(self, x: jax.Array, remat: Remat) -> jax.Array:
        """Map x [B, h, w, C] of the stage before (or of the patch embedding) to this stage's map [B, h/2, w/2, 2C] ([B, h, w, C] in the first stage)."""
        entries = 0
        if self.entry is not None:
            x, entries = self.entry(x, self.windows[0], self.drop_path[0]), 1
        if self.blocks is None:
            return x
        rates = np.asarray(self.drop_path[entries:], np.float32)
        for size, layers in stacking.runs(self.windows[entries:]):

            def step(block: Block, x: jax.Array, rate: jax.Array, size: int = size) -> tuple[jax.Array, None]:
                return block(x, size, rate), None

            x, _ = stacking.run(step, self.blocks, x, rates[layers.start : layers.stop], remat, layers)
        return x


class Hiera(nnx.Module):
    """The trunk, which maps square images to one feature map for each stage."""

    def __init__(self, c: Sam2Config, rngs: nnx.Rngs) -> None:
        self.patch_embed = PatchEmbed(c.embed_dim, rngs)
        self.pos_embed = declare(rngs, (1, c.embed_dim, *c.window_pos_embed_bkg_spatial_size), (None, EMBED, None, None))
        self.pos_embed_window = declare(rngs, (1, c.embed_dim, c.window_spec[0], c.window_spec[0]), (None, EMBED, None, None))
        self.stages = nnx.List([Stage(c, i, rngs) for i in range(len(c.stages))])

    def __call__(self, images: jax.Array, remat: Remat = "none") -> list[jax.Array]:
        """Map normalised images [B, S, S, 3] to feature maps [B, S/4, S/4, C], [B, S/8, S/8, 2C] and so on, in the dtype of the images."""
        x = self.patch_embed(images)
        side = x.shape[1]
        pos = resize_bicubic(self.pos_embed[...], (side, side))
        tiles = side // self.pos_embed_window.shape[-1]
        pos = pos + jnp.tile(self.pos_embed_window[...].astype(jnp.float32), (1, 1, tiles, tiles))
        x = x + pos.transpose(0, 2, 3, 1).astype(x.dtype)
        maps = []
        for stage in self.stages:
            x = stage(x, remat)
            maps.append(x)
        return maps


def _pooled_in_windows(q: jax.Array, size: int, bias: jax.Array) -> jax.Array:
    """Return the queries q [B, h, w, C] pooled within windows of side ``size``: [B, h/2, w/2, C]. ``bias`` [3 C] goes on where the map ends.

    Pooling within windows of even sides is pooling the map. Windows of odd sides lose their last row and column, each for itself, as in the reference.
    """
    if size % 2 == 0:
        return max_pool2(q)
    return window.merge(max_pool2(window.partition(q, size, bias[: q.shape[-1]])), (q.shape[1] // 2, q.shape[2] // 2))


def max_pool2(x: jax.Array) -> jax.Array:
    """Apply 2x2 max pooling: x [B, h, w, C] to [B, h/2, w/2, C]; an odd last row or column is dropped.

    It is written with ``maximum``, which XLA fuses into one loop on a CPU, where a reduction over the four entries is a separate library call.
    """
    b, h, w, c = x.shape
    x = x[:, : h // 2 * 2, : w // 2 * 2].reshape(b, h // 2, 2, w // 2, 2, c)
    return jnp.maximum(jnp.maximum(x[:, :, 0, :, 0], x[:, :, 0, :, 1]), jnp.maximum(x[:, :, 1, :, 0], x[:, :, 1, :, 1]))
