"""UniPixel: Qwen2.5-VL and SAM 2.1 joined by a segmentation head, a reference encoder and memory features
(arXiv 2509.18094; reference: unipixel/model/qwen2_5_vl.py). Composition only.

B batch, T tokens, D language width, d SAM width, H hidden tokens of an object, P patches, M merged vision tokens, E references, Q memory tokens.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from unipixel_jax.batch import ModelInputs, References, VisionTables
from unipixel_jax.config import UniPixelConfig
from unipixel_jax.core.axes import CHANNELS, EMBED, SEQUENCE
from unipixel_jax.core.params import abstract, declare, unit_normal, xavier
from unipixel_jax.core.sharding import constrain, over_images
from unipixel_jax.core.stacking import Remat, unstack_layers
from unipixel_jax.models.layers import Linear, Mlp, RMSNorm, gelu
from unipixel_jax.models.quantised import quantise_text
from unipixel_jax.models.qwen_vl.text import TextModel
from unipixel_jax.models.qwen_vl.vision import VisionTower
from unipixel_jax.models.sam2.position import fourier
from unipixel_jax.models.sam2.prompt_encoder import PromptEncoder
from unipixel_jax.models.sam2.tracker import Sam2


class SegHead(nnx.Module):
    """The head that maps the hidden state that predicts `<|seg|>` to hidden tokens, the prompt of SAM 2's mask decoder."""

    def __init__(self, c: UniPixelConfig, rngs: nnx.Rngs) -> None:
        d = c.text.hidden_size
        self.norm = RMSNorm(d, rngs)
        self.mlp = Mlp(d, d, c.sam2.d_model * c.sam2_hidden_tokens, gelu, rngs, init=xavier)
        self.tokens = c.sam2_hidden_tokens

    def __call__(self, hidden: jax.Array) -> jax.Array:
        """Map hidden states [..., D] before the final norm to hidden tokens [..., H, d] in the same dtype."""
        return self.mlp(self.norm(hidden)).reshape(*hidden.shape[:-1], self.tokens, -1)


class UniPixelModel(nnx.Module):
    """All weights of UniPixel and the computations that join its towers."""

    def __init__(self, config: UniPixelConfig, rngs: nnx.Rngs) -> None:
        c, d, s = config, config.text.hidden_size, config.sam2.d_model
        self.vision = VisionTower(c.vision, rngs)
        self.text = TextModel(c.text, rngs)
        self.sam2 = Sam2(c.sam2, rngs)
        self.seg_head = SegHead(c, rngs)
        self.ref_encoder = PromptEncoder(c.sam2, rngs)
        self.ref_proj_single = Linear(2 * s, 3 * s, (EMBED, CHANNELS), rngs, init=xavier)
        self.ref_proj_double = Linear(3 * s, 3 * s, (EMBED, CHANNELS), rngs, init=xavier)
        self.ref_proj = Linear(6 * s, d, (EMBED, CHANNELS), rngs, init=xavier)
        self.tem_pe_matrix = declare(rngs, (1, s // 2), (None, CHANNELS), unit_normal)
        self.tem_emb = declare(rngs, (1, s), (None, CHANNELS), unit_normal)
        self.tem_proj = Linear(s, 3 * s, (EMBED, CHANNELS), rngs, init=xavier)
        self.msk_proj = Mlp(c.vision.merge_dim, c.vision.merge_dim, d, gelu, rngs)
        self.config = c

    def embed(self, inputs: ModelInputs, dtype: jnp.dtype, remat: Remat = "none") -> jax.Array:
        """Return the embeddings [B, T, D] of all tokens in ``dtype``: those of images, references and memories are computed, the others looked up."""
        return self.merge_embeddings(self.text.embed(inputs.input_ids, dtype), inputs, remat)

    def merge_embeddings(self, x: jax.Array, inputs: ModelInputs, remat: Remat = "none") -> jax.Array:
        """Replace the embeddings of image, reference and memory tokens in x [B, T, D] by what the model computes for them; returns x's shape and dtype."""
        x = constrain(x)
        tokens, merger_input = self.encode_images(inputs.patches.astype(x.dtype), inputs.vision, remat)
        return self.fill_words(self.fill_images(x, tokens, inputs.vision_slots), inputs, merger_input)

    def fill_images(self, x: jax.Array, tokens: jax.Array, slots: jax.Array) -> jax.Array:
        """Replace the embeddings of image tokens in x [B, T, D] by vision tokens [M, D], whose rows are ``slots`` [B, T] (M for none); returns x's shape."""
        return _fill(x, tokens, slots)

    def fill_words(self, x: jax.Array, inputs: ModelInputs, merger_input: jax.Array) -> jax.Array:
        """Replace the embeddings of reference and memory tokens in x [B, T, D]; returns x's shape and dtype.

        Args:
            x: the embeddings.
            inputs: the tokens, and the references and memories that they stand for.
            merger_input: the merger's inputs [M, merge_dim] of all images, from ``encode_images``.
        """
        x = _fill(x, self.encode_references(inputs.references, x.dtype), inputs.reference_slots)
        return constrain(_fill(x, self.memory_features(merger_input, inputs.memory_rows), inputs.memory_slots), None, SEQUENCE)

    def embed_images(self, inputs: ModelInputs, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
        """Return the embeddings [B, T, D] of tokens without references and memories, and the merger's inputs [M, merge_dim], both in ``dtype``."""
        tokens, merger_input = self.encode_images(inputs.patches.astype(dtype), inputs.vision)
        return self.fill_images(self.text.embed(inputs.input_ids, dtype), tokens, inputs.vision_slots), merger_input

    def encode_images(self, patches: jax.Array, tables: VisionTables, remat: Remat = "none") -> tuple[jax.Array, jax.Array]:
        """Run the vision tower.

        Args:
            patches: [P, patch_dim], or [C, P, patch_dim] in C parts that are sharded over the devices that share a sample.
            tables: the index tables of the patches (batch.py), with the same leading axis of parts.
            remat: what the backward pass computes again (core/stacking.py).

        Returns:
            The tokens [M, D] and the merger's inputs [M, merge_dim] of all parts, in the dtype of ``patches``.
        """
        if patches.ndim == 2:
            return self.vision(patches, tables, remat)
        seen = over_images(lambda patches, tables: self.vision(patches, tables, remat))(patches, tables)
        return jax.tree.map(lambda a: constrain(a.reshape(-1, a.shape[-1])), seen)

    def encode_references(self, refs: References, dtype: jnp.dtype) -> jax.Array:
        """Return the embeddings [E, D] in ``dtype`` of points and boxes on their frames (section 3.2 of the paper)."""
        points = self.ref_encoder.points(refs.coords, refs.labels).astype(dtype)
        single = self.ref_proj_single(points[:, :2].reshape(points.shape[0], -1))
        double = self.ref_proj_double(points.reshape(points.shape[0], -1))
        where = jnp.where(refs.is_box[:, None], double, single)
        when = fourier((refs.frames / refs.spans)[:, None], self.tem_pe_matrix[...]).astype(dtype) + self.tem_emb[...].astype(dtype)
        return self.ref_proj(gelu(jnp.concatenate([where, self.tem_proj(when)], axis=1)))

    def memory_features(self, merger_input: jax.Array, table: jax.Array) -> jax.Array:
        """Return embeddings [Q, D] of memories: the projected means of the merger inputs [M, merge_dim] that a row of ``table`` [Q, C] lists, padded with M."""
        rows = merger_input.at[table].get(mode="fill", fill_value=0).astype(jnp.float32)
        count = jnp.sum(table < merger_input.shape[0], axis=1, keepdims=True)
        mean = jnp.sum(rows, axis=1) / jnp.maximum(count, 1).astype(jnp.float32)
        return self.msk_proj(mean.astype(merger_input.dtype))


def abstract_model(config: UniPixelConfig) -> UniPixelModel:
    """Return the model with shapes in place of arrays, which takes no memory at any size, in the form that ``config.quantisation`` asks for."""
    model = abstract(lambda rngs: UniPixelModel(config, rngs))
    if config.quantisation is not None:
        quantise_text(model.text, config.quantisation)
    return model


def unstack_towers(model: UniPixelModel) -> None:
    """Turn every stacked tower into a list of layers, in place: the form that runs fastest on a CPU (see core/stacking.py)."""
    unstack_layers(model.text, model.vision, model.sam2.memory_attention, *model.sam2.hiera.stages)


def with_config(model: UniPixelModel, config: UniPixelConfig) -> UniPixelModel:
    """Return a model with the same weights and another configuration, whose sizes are equal and whose switches may differ."""
    other = jax.tree.map(lambda a: a, model)
    other.config = config
    return other


def _fill(x: jax.Array, values: jax.Array, slots: jax.Array) -> jax.Array:
    """Replace the entries of x [B, T, D] by ``values[slots]`` where a slot [B, T] is below the number of values [n, D]."""
    return jnp.where((slots < values.shape[0])[..., None], values.at[slots].get(mode="fill", fill_value=0).astype(x.dtype), x)
