"""Changes of a random SAM 2 after which its recording takes every branch of the mask decoder.

A random decoder finds every object in all frames or in none, always prefers the same of its three masks, and has no stable mask.
"""

from __future__ import annotations

from typing import Any

import torch

from . import sam2_kinds, sam2_scenes
from .sam2_model import STABLE, stability, watched

PRESENT = 0.75
"""The share of outputs of tracking in which an object is to be present. The image predictor does not use the scores."""
LOGITS, SCORES = 8.0, 0.5
"""The deviation of the logits of the three masks, and of object scores, which hardly differ in a random model: a larger one would enlarge rounding too."""
WEIGHT = 5
"""How often an answer about the picture counts, so that the picture counts as much as the tracking."""
ROUNDS = 3
"""How often the changes are made: memories depend on earlier masks, so that each change moves what comes after it."""


@torch.no_grad()
def calibrate(model: Any, seed: int) -> None:
    """Scale and shift the last layers that make masks, IoUs and object scores, so that about half of the single masks are stable."""
    decoder = model.sam_mask_decoder
    script = sam2_scenes.sessions()["sam2_session"]
    for _ in range(ROUNDS):
        with watched(model) as asked:
            sam2_kinds.prompts(model, seed)
        with watched(model) as tracked:
            sam2_kinds.session(model, "sam2_session", script, seed)
        ious = torch.stack(WEIGHT * asked.ious + tracked.ious).clamp(1e-6, 1 - 1e-6).logit()
        _change(decoder.iou_prediction_head.layers[-1], 1 / ious.std(0), ious.median(0).values)
        scores = torch.tensor(tracked.scores)
        _change(decoder.pred_obj_score_head.layers[-1], SCORES / scores.std()[None], _split(tracked.scores))
        masks = torch.stack(WEIGHT * asked.masks + tracked.masks)
        for token, mlp in enumerate(decoder.output_hypernetworks_mlps):
            factor = LOGITS / masks[:, token].std() if token else _stabilising(masks[:, 0])
            _change(mlp.layers[-1], factor * torch.ones(len(mlp.layers[-1].bias)))


def _change(layer: torch.nn.Linear, factor: torch.Tensor, shift: torch.Tensor | float = 0.0) -> None:
    """Subtract ``shift`` [n] from a layer's outputs, and multiply them by ``factor`` [n]."""
    layer.bias.copy_((layer.bias - shift) * factor)
    layer.weight.mul_(factor[:, None])


def _split(scores: list[float]) -> float:
    """Return the middle of the widest gap between object scores of which about ``PRESENT`` are above it."""
    ranked = sorted(scores)
    around = range(int(len(ranked) * (0.9 - PRESENT)), int(len(ranked) * (1.1 - PRESENT)))
    gap = max(around, key=lambda i: ranked[i + 1] - ranked[i])
    return (ranked[gap] + ranked[gap + 1]) / 2


def _stabilising(masks: torch.Tensor) -> float:
    """Return the factor of the logits [n, h, w] with which half of the masks that are not empty are stable."""
    masks = masks[(masks > 0).flatten(1).any(1)]
    factors = [1.2**power for power in range(-10, 40)]
    return min(factors, key=lambda factor: abs(sum(stability(factor * mask) >= STABLE for mask in masks) / len(masks) - 0.5))
