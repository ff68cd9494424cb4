"""Mask losses of SAM 2's training (reference: sam2/loss_fns.py, MultiStepMultiMasksAndIous with UniPixel's settings).

O objects, M candidate masks (3), H and W height and width of the masks.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2


@dataclass(frozen=True)
class MaskLossWeights:
    """How much each loss counts.

    Attributes:
        mask: of the focal loss.
        dice: of the dice loss.
        iou: of the predicted IoU's error.
        object: of the object score's cross-entropy.
        every_candidate: train all three masks of an object rather than the best. A model that starts from nothing can please the best of three without
            looking at the prompt, one mask for each likely object.
    """

    mask: float = 100.0
    dice: float = 5.0
    iou: float = 5.0
    object: float = 5.0
    every_candidate: bool = False


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MaskLosses:
    """Sums over objects, divided by the number of objects; float32 scalars.

    Attributes:
        mask: focal loss (arXiv 1708.02002) of the best candidate, or of all.
        dice: dice loss of the best candidate, or of all.
        iou: L1 distance of all candidates' predicted to their true IoU.
        object: cross-entropy of the object score.
    """

    mask: jax.Array
    dice: jax.Array
    iou: jax.Array
    object: jax.Array

    def total(self, weights: MaskLossWeights) -> jax.Array:
        """The weighted sum."""
        return weights.mask * self.mask + weights.dice * self.dice + weights.iou * self.iou + weights.object * self.object


def mask_losses(
    logits: jax.Array, iou: jax.Array, object_score: jax.Array, target: jax.Array, valid: jax.Array, weights: MaskLossWeights
) -> MaskLosses:
    """Losses of one frame. The candidate with the lowest weighted focal + dice loss is trained; mask, dice and IoU count only where the object is.

    Args:
        logits: [O, M, H, W] float32.
        iou: [O, M] predicted IoU.
        object_score: [O] logits.
        target: [O, H, W] booleans.
        valid: [O] booleans; padding objects count nothing.
        weights: decide which candidate is best, and whether only that is trained.
    """
    truth = target.astype(jnp.float32)[:, None]
    focal = jnp.mean(_focal(logits, truth), axis=(2, 3))
    prob = jax.nn.sigmoid(logits)
    overlap = jnp.sum(prob * truth, axis=(2, 3))
    dice = 1 - (2 * overlap + 1) / (jnp.sum(prob, axis=(2, 3)) + jnp.sum(truth, axis=(2, 3)) + 1)
    if weights.every_candidate:
        focal, dice = jnp.mean(focal, axis=1), jnp.mean(dice, axis=1)
    else:
        best = jnp.argmin(weights.mask * focal + weights.dice * dice, axis=1)[:, None]
        focal, dice = (jnp.take_along_axis(a, best, axis=1)[:, 0] for a in (focal, dice))

    hit, mask = logits > 0, target[:, None]
    union = jnp.maximum(jnp.sum(hit | mask, axis=(2, 3)), 1)
    true_iou = jnp.sum(hit & mask, axis=(2, 3)).astype(jnp.float32) / union.astype(jnp.float32)
    iou_error = jnp.mean(jnp.abs(iou - true_iou), axis=1)

    present = jnp.any(target, axis=(1, 2)).astype(jnp.float32)
    presence = jnp.maximum(object_score, 0) - object_score * present + jnp.log1p(jnp.exp(-jnp.abs(object_score)))
    share = valid.astype(jnp.float32) / jnp.maximum(jnp.sum(valid), 1).astype(jnp.float32)
    return MaskLosses(
        mask=jnp.sum(focal * present * share),
        dice=jnp.sum(dice * present * share),
        iou=jnp.sum(iou_error * present * share),
        object=jnp.sum(presence * share),
    )


def _focal(logits: jax.Array, truth: jax.Array) -> jax.Array:
    entropy = jnp.maximum(logits, 0) - logits * truth + jnp.log1p(jnp.exp(-jnp.abs(logits)))
    prob = jax.nn.sigmoid(logits)
    right = prob * truth + (1 - prob) * (1 - truth)
    return (FOCAL_ALPHA * truth + (1 - FOCAL_ALPHA) * (1 - truth)) * entropy * (1 - right) ** FOCAL_GAMMA
