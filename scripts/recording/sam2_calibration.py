"""Changes of a random SAM 2 after which its recording takes every branch of the mask decoder.

A random decoder finds every object in all frames or in none, always prefers the same of its three masks, and has no stable mask.
"""

from __future__ import annotations

from typing import Any

import torch

from . import sam2_kinds, sam2_scenes
from .sam2_model import STABLE, Decodings, stability, watched

PRESENT = 0.75
"""The share of outputs in which an object is to be present."""
ROUNDS = 3
"""How often the changes are made: memories depend on earlier masks, so that each change moves what comes after it."""


@torch.no_grad()
def calibrate(model: Any, seed: int) -> None:
    """Move the biases of object scores and of IoUs, and scale the single mask so that about half of them are stable.

    Object scores are those of tracking, since the image predictor does not use them.
    """
    decoder = model.sam_mask_decoder
    script = sam2_scenes.sessions()["sam2_session"]
    for _ in range(ROUNDS):
        with watched(model) as asked:
            sam2_kinds.prompts(model, seed)
        with watched(model) as tracked:
            sam2_kinds.session(model, "sam2_session", script, seed)
        ious = torch.stack(asked.ious + tracked.ious).clamp(1e-6, 1 - 1e-6).logit()
        decoder.iou_prediction_head.layers[-1].bias -= ious.median(0).values
        decoder.pred_obj_score_head.layers[-1].bias -= _split(tracked.scores)
        last = decoder.output_hypernetworks_mlps[0].layers[-1]
        scale = _scale(asked, tracked)
        last.weight *= scale
        last.bias *= scale


def _split(scores: list[float]) -> float:
    """Return the middle of the widest gap between object scores of which about ``PRESENT`` are above it."""
    ranked = sorted(scores)
    around = range(int(len(ranked) * (0.9 - PRESENT)), int(len(ranked) * (1.1 - PRESENT)))
    gap = max(around, key=lambda i: ranked[i + 1] - ranked[i])
    return (ranked[gap] + ranked[gap + 1]) / 2


def _scale(*decodings: Decodings) -> float:
    """Return the factor of the logits with which half of the single masks are stable."""
    masks = [mask for one in decodings for mask in one.single if (mask > 0).any()]
    factors = [1.2**power for power in range(-5, 40)]
    return min(factors, key=lambda factor: abs(sum(stability(factor * mask) >= STABLE for mask in masks) / len(masks) - 0.5))
