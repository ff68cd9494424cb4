"""SAM 2's memory: the encoder that turns a mask into memory features, and the attention that reads them back
(reference: sam2/modeling/memory_encoder.py, memory_attention.py).

O objects, g side of the feature grid, D width, M memory width, S memory tokens.
"""

from __future__ import annotations

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from unipixel_jax.config import Sam2Config
from unipixel_jax.core import stacking
from unipixel_jax.core.axes import CHANNELS, EMBED, HEADS, IMAGES
from unipixel_jax.core.params import declare, lecun, zeros
from unipixel_jax.core.platform import platform
from unipixel_jax.models.layers import Dropout, LayerNorm, Linear, Mlp, gelu
from unipixel_jax.models.sam2.position import sine_grid
from unipixel_jax.ops.attention import AttnMask, Keys, WeightDropout, joint_attention, use_attention
from unipixel_jax.ops.conv import conv, depthwise
from unipixel_jax.ops.dense import dense
from unipixel_jax.ops.rope import axial_rope, rotate_half

EPS = 1e-5
"""The epsilon of the memory attention's norms."""
DROPOUT = 0.1
"""The rate of all dropout in the memory attention while training, in all published sizes."""
Rope = tuple[jax.Array, jax.Array]
"""Cosines and sines of the axial rope, each [g * g, D / 2] float32."""


class Conv(nnx.Module):
    """A 3x3 convolution with stride 2."""

    def __init__(self, d_in: int, d_out: int, rngs: nnx.Rngs) -> None:
        self.weight = declare(rngs, (d_out, d_in, 3, 3), (CHANNELS, CHANNELS, None, None), lecun)
        self.bias = declare(rngs, (d_out,), (CHANNELS,), zeros)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map x [O, 2h, 2w, d_in] to [O, h, w, d_out] in the same dtype."""
        return conv(x, self.weight[...], self.bias[...], stride=2, padding=1)


class MemoryMaskDownsampler(nnx.Module):
    """Four convolutions that take a mask from image resolution to the feature grid, for the memory. Each halves the sides and quadruples the channels."""

    def __init__(self, d: int, rngs: nnx.Rngs) -> None:
        widths = (1, 4, 16, 64, 256)
        self.convs = nnx.List([Conv(a, b, rngs) for a, b in pairwise(widths)])
        self.norms = nnx.List([LayerNorm(b, 1e-6, rngs) for b in widths[1:]])
        self.proj = Linear(widths[-1], d, (EMBED, CHANNELS), rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map x [O, 16g, 16g, 1] to [O, g, g, D] in the same dtype."""
        for layer, norm in zip(self.convs, self.norms, strict=True):
            x = gelu(norm(layer(x)))
        return self.proj(x)


class Depthwise(nnx.Module):
    """A 7x7 depthwise convolution."""

    def __init__(self, d: int, rngs: nnx.Rngs) -> None:
        self.weight = declare(rngs, (d, 1, 7, 7), (EMBED, None, None, None), lecun)
        self.bias = declare(rngs, (d,), (EMBED,), zeros)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map x [O, h, w, d] to the same shape and dtype."""
        return depthwise(x, self.weight[...], self.bias[...])


class ConvNextBlock(nnx.Module):
    """A ConvNeXt block (arXiv 2201.03545) with layer scale."""

    def __init__(self, d: int, rngs: nnx.Rngs) -> None:
        self.dwconv = Depthwise(d, rngs)
        self.norm = LayerNorm(d, 1e-6, rngs)
        self.mlp = Mlp(d, 4 * d, d, gelu, rngs)
        self.scale = declare(rngs, (d,), (EMBED,), jax.nn.initializers.constant(1e-6))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map x [O, g, g, D] to the same shape and dtype."""
        return x + self.scale[...].astype(x.dtype)[None, None, None] * self.mlp(self.norm(self.dwconv(x)))


class MemoryEncoder(nnx.Module):
    """The memory encoder, which makes memory features of image features and a mask."""

    def __init__(self, c: Sam2Config, rngs: nnx.Rngs) -> None:
        self.mask_down = MemoryMaskDownsampler(c.d_model, rngs)
        self.pix_proj = Linear(c.d_model, c.d_model, (EMBED, EMBED), rngs)
        self.fuser = nnx.List([ConvNextBlock(c.d_model, rngs) for _ in range(c.fuser_layers)])
        self.out_proj = Linear(c.d_model, c.mem_dim, (CHANNELS, EMBED), rngs) if c.mem_dim != c.d_model else None

    def __call__(self, low: jax.Array, mask_logits: jax.Array) -> jax.Array:
        """Map features ``low`` [1 or O, g, g, D] and mask logits [O, 16g, 16g] to memory features [O, g, g, M] in the dtype of ``low``."""
        mask = (jax.nn.sigmoid(mask_logits) * 20 - 10).astype(low.dtype)
        x = self.pix_proj(low) + self.mask_down(mask[..., None])
        for block in self.fuser:
            x = block(x)
        return x if self.out_proj is None else self.out_proj(x)


class RopeAttention(nnx.Module):
    """Attention with one head, and axial rope on the queries and on the keys that lie on the grid."""

    def __init__(self, d: int, kv_dim: int, rngs: nnx.Rngs) -> None:
        self.q = Linear(d, d, (HEADS, EMBED), rngs)
        self.k = Linear(kv_dim, d, (HEADS, CHANNELS), rngs)
        self.v = Linear(kv_dim, d, (HEADS, CHANNELS), rngs)
        self.o = Linear(d, d, (EMBED, HEADS), rngs)
        self.dropout = Dropout(DROPOUT)

    def __call__(self, x: jax.Array, keys: jax.Array, values: jax.Array, rope: Rope, off_grid: int, mask: AttnMask) -> jax.Array:
        """Attend to keys and values, with two peculiarities.

        With one head, ``softmax(s) (m W + b) = (softmax(s) m) W + b``. Where the memory is narrower than the model (64 and 256), the values are therefore
        weighted before they are projected, which saves three eighths of the products and a projection of the whole memory. Weights that were partly dropped
        do not add up to 1, so with dropout a column of ones beside the values finds their sum, by which the bias is multiplied.

        No gradient flows through rotated queries and keys. The reference applies its rope under ``torch.no_grad`` (sam2/modeling/position_encoding.py,
        apply_rotary_enc), so UniPixel was trained with scores that are constant except for the keys off the grid, and a port that trains must do the same.

        Args:
            x: [O, g * g, D] queries before projection.
            keys, values: [O, S, kv_dim] before projection; the last ``off_grid`` are not on the grid, the others are whole grids one after the other.
            rope: cosines and sines from ``axial_rope``.
            off_grid: the number of keys that are not on the grid.
            mask: the mask of the attention.

        Returns:
            [O, g * g, D] in x's dtype.
        """
        narrow = values.shape[-1] < x.shape[-1]
        dropped = self.dropout.key is not None
        if narrow and dropped:
            values = jnp.concatenate([values, jnp.ones_like(values[..., :1])], axis=-1)
        elif dropped:
            values = self.v(values)
        cos, sin = rope
        q = jax.lax.stop_gradient(rotate_half(_halves_apart(self.q, x)[:, :, None], cos[None], sin[None]))
        s = keys.shape[1] - off_grid
        on_grid = self._rotated_keys(keys[:, :s], rope, mask)
        sets = [self._set(jax.lax.stop_gradient(on_grid), values[:, :s], mask, slice(0, s), run=cos.shape[0])]
        if off_grid:
            sets.append(self._set(_halves_apart(self.k, keys[:, s:])[:, :, None], values[:, s:], mask, slice(s, None)))
        out = joint_attention(q, sets, axes=(IMAGES, None, None))[:, :, 0]
        if not dropped:
            return self.o(self.v(out))
        if not narrow:
            return self.o(out)
        weight, bias = self.v.weight[...], self.v.bias
        assert bias is not None, "the projection is made with a bias"
        return self.o(dense(out, jnp.concatenate([weight, bias[...][:, None]], axis=1)))

    def _rotated_keys(self, keys: jax.Array, rope: Rope, mask: AttnMask) -> jax.Array:
        """Return the projection of keys [O, grids * g * g, kv_dim] that lie on the grid, rotated: [O, grids * g * g, 1, D]. A CPU leaves out grids that nobody
        sees, half of a clip's on average, whose projections would take a tenth of its time. With whole score matrices, as in exports, no such loop over grids
        is made.
        """
        cos, sin = rope
        grids = rearrange(keys, "o (grids at) d -> o grids at d", at=cos.shape[0])

        def rotated(grids: jax.Array) -> jax.Array:
            return rotate_half(_halves_apart(self.k, grids)[:, :, :, None], cos[None, None], sin[None, None])

        if platform() != "cpu" or use_attention.value == "xla" or mask.kv_segments is None:
            return rearrange(rotated(grids), "o grids at 1 d -> o (grids at) 1 d")

        def one(own: tuple[jax.Array, jax.Array]) -> jax.Array:
            grid, seen = own
            none = lambda grid: jnp.zeros((grid.shape[0], cos.shape[-1] * 2), grid.dtype)  # noqa: E731
            return jax.lax.cond(seen != 0, lambda grid: rotated(grid[None, None])[0, 0, :, 0], none, grid)

        seen = mask.kv_segments[:, : keys.shape[1] : cos.shape[0]]
        found = jax.lax.map(one, (rearrange(grids, "o grids at d -> (o grids) at d"), seen.reshape(-1)))
        return rearrange(found, "(o grids) at d -> o (grids at) 1 d", o=len(keys))

    def _set(self, k: jax.Array, values: jax.Array, mask: AttnMask, which: slice, run: int = 0) -> Keys:
        """Return keys [O, S, 1, D] and values [O, S, V] as a set of their own; ``which`` of all keys they are, and in which runs all see them or none does."""
        kv_segments = None if mask.kv_segments is None else mask.kv_segments[:, which]
        dropout = None
        if self.dropout.key is not None:
            dropout = WeightDropout.draw(jax.random.fold_in(self.dropout.key[...], which.start), k.shape[0], 1, self.dropout.rate)
        return Keys(k, values[:, :, None], AttnMask(mask.causal, mask.q_segments, kv_segments, run=run), dropout)


def _halves_apart(layer: Linear, x: jax.Array) -> jax.Array:
    """Return ``layer(x)`` [..., D] with the even channels before the odd ones.

    SAM 2 rotates neighbouring channels. Scores do not change if queries and keys are reordered alike, and the two halves can be rotated as whole vectors,
    which neighbouring channels cannot. The reordering is done on the weights, which are small.
    """
    order = rearrange(np.arange(layer.weight.shape[0]), "(pairs half) -> (half pairs)", half=2)
    return dense(x, layer.weight[...][order], layer.bias[...][order])  # type: ignore[index]


class MemoryBlock(nnx.Module):
    """A pre-normalised layer of self-attention, attention to the memory, and feed-forward."""

    def __init__(self, c: Sam2Config, rngs: nnx.Rngs) -> None:
        d = c.d_model
        self.self_attn = RopeAttention(d, d, rngs)
        self.cross_attn = RopeAttention(d, c.mem_dim, rngs)
        self.mlp = Mlp(d, c.memory_attention_ffn_dim, d, jax.nn.relu, rngs)
        self.norm1 = LayerNorm(d, EPS, rngs)
        self.norm2 = LayerNorm(d, EPS, rngs)
        self.norm3 = LayerNorm(d, EPS, rngs)
        self.drop_self = Dropout(DROPOUT)
        self.drop_cross = Dropout(DROPOUT)
        self.drop_hidden = Dropout(DROPOUT)
        self.drop_mlp = Dropout(DROPOUT)

    def feed_forward(self, x: jax.Array) -> jax.Array:
        """Map x [O, g * g, D] to the same shape and dtype."""
        hidden = self.drop_hidden(self.mlp.act(self.mlp.fc1(self.norm3(x))))
        return self.drop_mlp(self.mlp.fc2(hidden))


class MemoryAttention(nnx.Module):
    """The memory attention, which conditions a frame's features on the memory."""

    def __init__(self, c: Sam2Config, rngs: nnx.Rngs) -> None:
        self.blocks = stacking.stack(lambda r: MemoryBlock(c, r), c.memory_attention_layers, rngs)
        self.norm = LayerNorm(c.d_model, EPS, rngs)
        self.config = c

    def __call__(self, low: jax.Array, memory: jax.Array, memory_pos: jax.Array, visible: jax.Array, off_grid: int) -> jax.Array:
        """Condition the features of a frame on the memory.

        Args:
            low: [1 or O, g, g, D] features of the frame, shared by all objects or one for each.
            memory: [O, S, M]; the last ``off_grid`` tokens are object pointers, the others grids of g * g tokens.
            memory_pos: [1 or O, S, M] position codes, which are added to the keys only.
            visible: [1 or O, S] int32, 1 where there is a token, 0 where a slot is empty.
            off_grid: the number of tokens that are object pointers.

        Returns:
            [O, g, g, D] in the dtype of ``low``.
        """
        (distinct, g, _, d), dtype, o = low.shape, low.dtype, memory.shape[0]
        cos, sin = (jnp.asarray(a) for a in axial_rope(g, d))
        x = low + 0.1 * jnp.asarray(sine_grid(g, d), dtype)[None]
        keys = memory + memory_pos.astype(dtype)
        mask = AttnMask(q_segments=jnp.ones((o, g * g), jnp.int32), kv_segments=jnp.broadcast_to(visible, memory.shape[:2]))

        def layer(block: MemoryBlock, x: jax.Array, first: jax.Array | np.bool_) -> tuple[jax.Array, None]:
            def attend(y: jax.Array) -> jax.Array:
                return block.self_attn(y, y, y, (cos, sin), 0, AttnMask())

            def attend_once(y: jax.Array) -> jax.Array:
                """Attend once for all objects: in the first layer they have the same features, unless dropout drops other weights for each."""
                return jnp.broadcast_to(attend(y[:distinct]), y.shape) if block.drop_self.key is None else attend(y)

            # Where layers are unstacked, the number of each is known while the program is traced.
            known = isinstance(first, np.bool_)
            y = block.norm1(x)
            attended = (attend_once if first else attend)(y) if known else jax.lax.cond(first, attend_once, attend, y)
            x = x + block.drop_self(attended)
            x = x + block.drop_cross(block.cross_attn(block.norm2(x), keys, memory, (cos, sin), off_grid, mask))
            return x + block.feed_forward(x), None

        start = jnp.broadcast_to(rearrange(x, "o row column d -> o (row column) d"), (o, g * g, d))
        # A scan writes what the backward pass needs of each layer into stacks. A GPU keeps nothing between two operations, and main memory bounds a step there.
        x, _ = stacking.run(layer, self.blocks, start, np.arange(stacking.length(self.blocks)) == 0, scan=platform() != "gpu")
        return rearrange(self.norm(x), "o (row column) d -> o row column d", row=g)
