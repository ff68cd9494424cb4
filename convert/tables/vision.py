"""The table of Qwen2.5-VL's vision tower (transformers, models/qwen2_5_vl/modeling_qwen2_5_vl.py, under the names that saved checkpoints use)."""

from __future__ import annotations

from unipixel_jax.config import VisionConfig

from ..rules import Rule, single, stacked

PATCH_EMBED = "visual.patch_embed.proj.weight"

MERGER = (
    ("ln_q.weight", "norm.weight"),
    ("mlp.{0,2}.{weight,bias}", "mlp.{fc1,fc2}.{weight,bias}"),
)

BLOCK = (
    ("norm{1,2}.weight", "norm{1,2}.weight"),
    ("attn.{qkv,proj}.{weight,bias}", "attn.{qkv,proj}.{weight,bias}"),
    ("mlp.{gate,up,down}_proj.{weight,bias}", "mlp.{gate,up,down}.{weight,bias}"),
)


def vision_rules(config: VisionConfig) -> list[Rule]:
    """Return the rules for `vision`. torch has the patch embedding as a 3-D convolution, whose stride is the size of its kernel."""
    kernel = (config.hidden_size, config.in_channels, config.temporal_patch_size, config.patch_size, config.patch_size)
    return [
        *single([(PATCH_EMBED, "vision.patch_embed.weight", lambda shape: kernel)]),
        *stacked(BLOCK, "visual.blocks.*.", "vision.blocks.", range(config.depth)),
        *single(MERGER, "visual.merger.", "vision.merger."),
    ]
