"""The table of the layers that UniPixel adds to the two models (unipixel/model/qwen2_5_vl.py in the reference)."""

from __future__ import annotations

from ..rules import Rule, single
from .sam2 import prompt_encoder_rules

HEADS = (
    ("seg_head.0.weight", "seg_head.norm.weight"),
    ("seg_head.{1,3}.{weight,bias}", "seg_head.mlp.{fc1,fc2}.{weight,bias}"),
    ("ref_proj_{single,double}.{weight,bias}", "ref_proj_{single,double}.{weight,bias}"),
    ("ref_proj.1.{weight,bias}", "ref_proj.{weight,bias}"),
    ("tem_proj.{weight,bias}", "tem_proj.{weight,bias}"),
    ("tem_pe.positional_encoding_gaussian_matrix", "tem_pe_matrix"),
    ("tem_emb.weight", "tem_emb"),
    ("msk_proj.{0,2}.{weight,bias}", "msk_proj.{fc1,fc2}.{weight,bias}"),
)


def head_rules() -> list[Rule]:
    """Return the rules for the heads and for `ref_encoder`, which has the layers of SAM 2's prompt encoder."""
    return single(HEADS) + prompt_encoder_rules("ref_encoder.", "ref_encoder.")
