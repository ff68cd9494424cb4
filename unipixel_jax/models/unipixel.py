"""UniPixel: Qwen2.5-VL and SAM 2.1 joined by a segmentation head, a reference encoder and memory features
(arXiv 2509.18094; reference: unipixel/model/qwen2_5_vl.py). Composition only.

B batch, T tokens, D language width, d SAM width, M merged vision tokens, E references, Q memory tokens.
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
from unipixel_jax.models.qwen_vl.text import TextModel
from unipixel_jax.models.qwen_vl.vision import VisionTower
from unipixel_jax.models.sam2.position import fourier
from unipixel_jax.models.sam2.prompt_encoder import PromptEncoder
from unipixel_jax.models.sam2.tracker import Sam2


class SegHead(nnx.Module):
    """The hidden state that predicts `<|seg|>` to hidden tokens for SAM 2's mask decoder."""

    def __init__(self, c: UniPixelConfig, rngs: nnx.Rngs) -> None:
        d = c.text.hidden_size
        self.norm = RMSNorm(d, rngs)
        self.mlp = Mlp(d, d, c.sam2.d_model * c.sam2_hidden_tokens, gelu, rngs, init=xavier)
        self.tokens = c.sam2_hidden_tokens

    def __call__(self, hidden: jax.Array) -> jax.Array:
        """hidden [..., D] before the final norm to [..., H, d]."""
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
        """Token embeddings [B, T, D] in ``dtype``, with vision tokens, references and memory features in their places."""
        return self.fill(self.text.embed(inputs.input_ids, dtype), inputs, remat)

    def fill(self, x: jax.Array, inputs: ModelInputs, remat: Remat = "none") -> jax.Array:
        """Embedded tokens [B, T, D] with vision tokens, references and memory features in their places, in x's dtype."""
        x, dtype = constrain(x), x.dtype
        tokens, merger_input = self.look(inputs.patches.astype(dtype), inputs.vision, remat)
        x = _fill(x, tokens, inputs.vision_slots)
        x = _fill(x, self.encode_references(inputs.references, dtype), inputs.reference_slots)
        return constrain(_fill(x, self.memory_features(merger_input, inputs.memory_rows), inputs.memory_slots), None, SEQUENCE)

    def look(self, patches: jax.Array, tables: VisionTables, remat: Remat = "none") -> tuple[jax.Array, jax.Array]:
        """The vision tower over patches [P, patch_dim], or over parts of them [C, P, patch_dim] that devices share: tokens [M, D] and merger inputs [M, 4 d]
        of all parts.
        """
        if patches.ndim == 2:
            return self.vision(patches, tables, remat)
        seen = over_images(lambda patches, tables: self.vision(patches, tables, remat))(patches, tables)
        return jax.tree.map(lambda a: constrain(a.reshape(-1, a.shape[-1])), seen)

    def encode_references(self, refs: References, dtype: jnp.dtype) -> jax.Array:
        """Points and boxes with their frames to embeddings [E, D] (section 3.2 of the paper)."""
        points = self.ref_encoder.points(refs.coords, refs.labels).astype(dtype)
        single = self.ref_proj_single(points[:, :2].reshape(points.shape[0], -1))
        double = self.ref_proj_double(points.reshape(points.shape[0], -1))
        where = jnp.where(refs.is_box[:, None], double, single)
        when = fourier((refs.frames / refs.spans)[:, None], self.tem_pe_matrix[...]).astype(dtype) + self.tem_emb[...].astype(dtype)
        return self.ref_proj(gelu(jnp.concatenate([where, self.tem_proj(when)], axis=1)))

    def memory_features(self, merger_input: jax.Array, table: jax.Array) -> jax.Array:
        """Mean merger inputs over the rows of ``table`` [Q, C], projected: [Q, D]."""
        rows = merger_input.at[table].get(mode="fill", fill_value=0).astype(jnp.float32)
        count = jnp.sum(table < merger_input.shape[0], axis=1, keepdims=True)
        mean = jnp.sum(rows, axis=1) / jnp.maximum(count, 1).astype(jnp.float32)
        return self.msk_proj(mean.astype(merger_input.dtype))


def abstract_model(config: UniPixelConfig) -> UniPixelModel:
    """The model with shapes in place of arrays, at once whatever its size."""
    return abstract(lambda rngs: UniPixelModel(config, rngs))


def unstack_towers(model: UniPixelModel) -> None:
    """Turn every stacked tower into a list of layers, in place: the form that runs fastest on a CPU (see core/stacking.py)."""
    unstack_layers(model.text, model.vision, model.sam2.memory_attention, *model.sam2.hiera.stages)


def with_config(model: UniPixelModel, config: UniPixelConfig) -> UniPixelModel:
    """The same weights under a configuration of equal sizes but other switches."""
    other = jax.tree.map(lambda a: a, model)
    other.config = config
    return other


def _fill(x: jax.Array, values: jax.Array, slots: jax.Array) -> jax.Array:
    """Replace x [B, T, D] by values[slots] wherever a slot is in range."""
    return jnp.where((slots < values.shape[0])[..., None], values.at[slots].get(mode="fill", fill_value=0).astype(x.dtype), x)
