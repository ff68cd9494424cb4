"""Random weights with which a tiny model computes something worth comparing."""

from __future__ import annotations

import math

import torch

EMBEDDINGS = ("embed_tokens", "embed.weight", "pos_embed", "point_embeddings", "_token.", "_tokens.", "tem_emb", "no_", "tpos_enc")


def random_value(name: str, noise: torch.Tensor) -> torch.Tensor:
    """Return the value of a parameter or buffer: linear layers keep the scale of their input, norms lie near 1, and nothing stays zero.

    Args:
        name: the tensor's name in the state dict.
        noise: normally distributed numbers in the tensor's shape.
    """
    if "gaussian_matrix" in name:
        return noise
    if name.endswith("lm_head.weight"):
        return noise * 3 / math.sqrt(noise.shape[1])
    if any(part in name for part in EMBEDDINGS):
        return noise / 2
    if name.endswith("o_proj.weight"):
        # small, so that hidden states keep differing from position to position
        return noise / (2 * math.sqrt(noise.shape[1]))
    if "mask_decoder.transformer" in name and name.endswith(("q_proj.weight", "k_proj.weight")):
        # large, so that attention is sharp, and one frame's output differs from another's
        return noise * 3 / math.sqrt(noise.shape[1])
    if noise.dim() > 1:
        return noise / math.sqrt(noise[0].numel())
    if "fuser" in name and name.split(".")[-2].isdigit():
        return 0.5 + noise / 5
    if name.endswith("weight"):
        return 1 + noise / 5
    return noise / 10
