"""Mask losses of SAM 2's training (reference: sam2/loss_fns.py, MultiStepMultiMasksAndIous with UniPixel's settings).

O objects, M candidate masks (3), H and W height and width of the masks.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2
"""The weight of pixels on the object, and the exponent that lowers the loss of pixels that are already right (arXiv 1708.02002)."""


@dataclass(frozen=True)
class MaskLossWeights:
    """How much each loss counts.

    Attributes:
        mask: weight of the focal loss.
        dice: weight of the dice loss.
        iou: weight of the predicted IoU's error.
        object: weight of the object score's cross-entropy.
        every_candidate: train all M masks of an object rather than the best. A model that starts from random weights can lower the loss of the best mask
            without looking at the prompt, by offering one mask for each likely object.
    """

    mask: float = 100.0
    dice: float = 5.0
    iou: float = 5.0
    object: float = 5.0
    every_candidate: bool = False


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MaskLosses:
    """Means of each loss over the objects that are no padding; float32 scalars.

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
        """Return the weighted sum of the four losses, a float32 scalar."""
        return weights.mask * self.mask + weights.dice * self.dice + weights.iou * self.iou + weights.object * self.object


def mask_losses(
    logits: jax.Array, iou: jax.Array, object_score: jax.Array, target: jax.Array, valid: jax.Array, weights: MaskLossWeights
) -> MaskLosses:
    """Compute the losses of one frame.

    Only the candidate with the lowest weighted focal + dice loss is trained. Focal, dice and IoU losses count only for objects that the frame shows.

    Args:
        logits: [O, M, H, W] float32.
        iou: [O, M] float32, predicted IoU.
        object_score: [O] float32, logits of the object being there.
        target: [O, H, W] bool, the true masks; all False where the frame does not show the object.
        valid: [O] bool, False for padding objects, which count nothing.
        weights: decide which candidate is best, and whether only that is trained.

    Returns:
        Means over the valid objects; all zero if there is none.
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
    """Return the focal loss of each pixel (arXiv 1708.02002, section 3.2), in the shape of ``logits``; ``truth`` is 0 or 1."""
    entropy = jnp.maximum(logits, 0) - logits * truth + jnp.log1p(jnp.exp(-jnp.abs(logits)))
    prob = jax.nn.sigmoid(logits)
    right = prob * truth + (1 - prob) * (1 - truth)
    return (FOCAL_ALPHA * truth + (1 - FOCAL_ALPHA) * (1 - truth)) * entropy * (1 - right) ** FOCAL_GAMMA
