"""Qwen2.5's decoder with multimodal rope (transformers 4.53, models/qwen2_5_vl/modeling_qwen2_5_vl.py, Qwen2_5_VLTextModel).

B batch, T tokens, D width, N query heads, K key heads, H head size, V vocabulary, S cache slots.
"""

from __future__ import annotations

from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from unipixel_jax.config import TextConfig
from unipixel_jax.core import stacking
from unipixel_jax.core.axes import EMBED, HEADS, KV_HEADS, SEQUENCE, VOCAB
from unipixel_jax.core.params import declare, normal
from unipixel_jax.core.sharding import constrain
from unipixel_jax.core.stacking import Remat
from unipixel_jax.models.layers import Linear, RMSNorm, SwiGlu
from unipixel_jax.models.qwen_vl.cache import KVCache, LayerCache
from unipixel_jax.ops.attention import AttnMask, attention
from unipixel_jax.ops.attention.cached import LiveBlocks
from unipixel_jax.ops.dense import dense
from unipixel_jax.ops.rope import mrope_angles, rotate_half
from unipixel_jax.ops.take import take_rows

Cache = TypeVar("Cache", KVCache, None)


class Attention(nnx.Module):
    """Grouped-query self-attention with rope; q, k and v have biases, o has none."""

    def __init__(self, c: TextConfig, rngs: nnx.Rngs) -> None:
        d, h = c.hidden_size, c.head_dim
        self.q = Linear(d, c.num_attention_heads * h, (HEADS, EMBED), rngs)
        self.k = Linear(d, c.num_key_value_heads * h, (KV_HEADS, EMBED), rngs)
        self.v = Linear(d, c.num_key_value_heads * h, (KV_HEADS, EMBED), rngs)
        self.o = Linear(c.num_attention_heads * h, d, (EMBED, HEADS), rngs, bias=False)
        self.head_dim = h

    def __call__(
        self, x: jax.Array, rope: tuple[jax.Array, jax.Array], segments: jax.Array, cache: LayerCache | None = None
    ) -> tuple[jax.Array, LayerCache | None]:
        """Attend causally to the tokens of the same segment, among these or, with a cache that says which blocks are live, among all tokens in the cache.

        Args:
            x: [B, T, D].
            rope: cosines and sines [B, T, H / 2], float32.
            segments: [B, T] int32, 0 at padding.
            cache: the layer's view of a cache that is already marked with ``segments``, or None.

        Returns:
            [B, T, D] in x's dtype, and the cache with these tokens.
        """
        q, k, v = (f(x).reshape(*x.shape[:2], -1, self.head_dim) for f in (self.q, self.k, self.v))
        q, k = rotate_half(q, *rope), rotate_half(k, *rope)
        cache = None if cache is None else cache.write(k, v)
        if cache is None or not cache.is_read:
            out = attention(q, k, v, AttnMask(causal=True, q_segments=segments, kv_segments=segments), axes=(None, SEQUENCE, HEADS))
        else:
            out = cache.attend(q, segments)
        return self.o(out.reshape(*x.shape[:2], -1)), cache


class Block(nnx.Module):
    """A pre-normalised decoder layer."""

    def __init__(self, c: TextConfig, rngs: nnx.Rngs) -> None:
        self.norm1 = RMSNorm(c.hidden_size, rngs, c.rms_norm_eps)
        self.attn = Attention(c, rngs)
        self.norm2 = RMSNorm(c.hidden_size, rngs, c.rms_norm_eps)
        self.mlp = SwiGlu(c.hidden_size, c.intermediate_size, rngs, bias=False)

    def __call__(
        self, x: jax.Array, rope: tuple[jax.Array, jax.Array], segments: jax.Array, cache: LayerCache | None = None
    ) -> tuple[jax.Array, LayerCache | None]:
        """Return [B, T, D] in x's dtype, and the cache with these tokens; arguments as in ``Attention``."""
        attended, cache = self.attn(self.norm1(x), rope, segments, cache)
        x = x + attended
        return constrain(x + self.mlp(self.norm2(x)), None, SEQUENCE), cache


class TextModel(nnx.Module):
    """The language model: embedding, decoder layers, final norm and, unless it is tied to the embedding, the head."""

    def __init__(self, c: TextConfig, rngs: nnx.Rngs) -> None:
        self.embed = Embedding(c, rngs)
        self.blocks = stacking.stack(lambda r: Block(c, r), c.num_hidden_layers, rngs)
        self.norm = RMSNorm(c.hidden_size, rngs, c.rms_norm_eps)
        self.head = None if c.tie_word_embeddings else Linear(c.hidden_size, c.vocab_size, (VOCAB, EMBED), rngs, bias=False)
        self.config = c

    def __call__(self, x: jax.Array, position_ids: jax.Array, segments: jax.Array, remat: Remat = "none") -> jax.Array:
        """Run the layers over whole rows.

        Args:
            x: [B, T, D] embedded tokens; its dtype is the compute dtype.
            position_ids: [3, B, T] integers (time, height, width).
            segments: [B, T] int32; 0 is padding, equal numbers attend to each other, causally.
            remat: what the backward pass computes again (core/stacking.py).

        Returns:
            [B, T, D] hidden states BEFORE the final norm.
        """
        return self._run(x, position_ids, segments, None, 0, remat)[0]

    def extend(
        self, x: jax.Array, position_ids: jax.Array, segments: jax.Array, cache: KVCache, at: jax.Array | int, continues: bool = False
    ) -> tuple[jax.Array, KVCache]:
        """Run the layers over new tokens and write their keys and values to the cache.

        Args:
            x: [B, T, D] embedded tokens. With T = 1 the token attends to all of the cache, with T > 1 as ``continues`` says.
            position_ids: [3, B, T] integers (time, height, width).
            segments: [B, T] int32, 1 or, at padding, 0.
            cache: the cache with the tokens before.
            at: the first slot to write.
            continues: with T > 1, whether the tokens also attend to those in the slots before ``at``, or to each other only (a prefill of an empty cache).

        Returns:
            [B, T, D] hidden states before the final norm, and the cache with the new tokens.
        """
        cache = cache.mark(segments, at)
        live = LiveBlocks.of(cache.segments, jnp.any(segments != 0, axis=1)) if continues or x.shape[1] == 1 else None
        x, cache = self._run(x, position_ids, segments, cache, at, "none", live)
        return x, cache.sharded()

    def _run(
        self,
        x: jax.Array,
        position_ids: jax.Array,
        segments: jax.Array,
        cache: Cache,
        at: jax.Array | int,
        remat: Remat,
        live: LiveBlocks | None = None,
    ) -> tuple[jax.Array, Cache]:
        """Run the layers; returns hidden states [B, T, D] before the final norm, and the cache with the new tokens (None without a cache)."""
        rope = self.rope(position_ids)

        def step(block: Block, carry: tuple, layer: jax.Array) -> tuple[tuple, None]:
            x, cache = carry
            x, own = block(x, rope, segments, None if cache is None else LayerCache(cache, layer, at, live))
            return (x, None if own is None else own.cache), None

        return stacking.run(step, self.blocks, (x, cache), jnp.arange(self.config.num_hidden_layers), remat)[0]

    def rope(self, position_ids: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the cosines and sines of rope, each [B, T, H / 2] float32, of positions [3, B, T]."""
        c = self.config
        angles = mrope_angles(position_ids, c.head_dim, c.rope_theta, c.mrope_section)
        return jnp.cos(angles), jnp.sin(angles)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Map hidden states [..., D] before the final norm to scores [..., V] in float32."""
        x = self.norm(hidden)
        return (self.embed.scores(x) if self.head is None else self.head(x)).astype(jnp.float32)

    @property
    def head_weight(self) -> jax.Array:
        """The weight [V, D] of the head, which is that of the embedding where they are tied."""
        return (self.embed if self.head is None else self.head).weight[...]


class Embedding(nnx.Module):
    """The table of embeddings, with a row for each token of the vocabulary."""

    def __init__(self, c: TextConfig, rngs: nnx.Rngs) -> None:
        self.weight = declare(rngs, (c.vocab_size, c.hidden_size), (VOCAB, EMBED), normal(0.25))

    def __call__(self, ids: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """Map ids [...] (integers) to embeddings [..., D] in ``dtype``."""
        return take_rows(self.weight[...], ids).astype(dtype)

    def scores(self, x: jax.Array) -> jax.Array:
        """Map states x [..., D] to scores [..., V] in x's dtype, as a head that is tied to the embedding."""
        return dense(x, self.weight[...])
