"""The table of Qwen2.5's decoder (transformers, models/qwen2_5_vl/modeling_qwen2_5_vl.py, under the names that saved checkpoints use)."""

from __future__ import annotations

from unipixel_jax.config import TextConfig

from ..rules import Rule, single, stacked

OUTSIDE = (("model.embed_tokens.weight", "embed.weight"), ("model.norm.weight", "norm.weight"))

HEAD = (("lm_head.weight", "head.weight"),)

BLOCK = (
    ("input_layernorm.weight", "norm1.weight"),
    ("self_attn.{q,k,v}_proj.{weight,bias}", "attn.{q,k,v}.{weight,bias}"),
    ("self_attn.o_proj.weight", "attn.o.weight"),
    ("post_attention_layernorm.weight", "norm2.weight"),
    ("mlp.{gate,up,down}_proj.weight", "mlp.{gate,up,down}.weight"),
)


def text_rules(config: TextConfig) -> list[Rule]:
    """Return the rules for `text`; a tied head has none, since it is the embedding."""
    outside = OUTSIDE if config.tie_word_embeddings else OUTSIDE + HEAD
    return single(outside, jax="text.") + stacked(BLOCK, "model.layers.*.", "text.blocks.", range(config.num_hidden_layers))
