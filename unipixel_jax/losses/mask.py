"""Mask losses of SAM 2's training (reference: sam2/loss_fns.py, MultiStepMultiMasksAndIous with UniPixel's settings).

O objects, M candidate masks (3), h and w height and width of the decoder's masks, H and W those of the true ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unipixel_jax.ops.resize import interpolation_weights

FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2
"""The weight of pixels on the object, and the exponent that lowers the loss of pixels that are already right (arXiv 1708.02002)."""
ROWS = 64
"""The most rows of the resized masks that exist at the same time. Those of five objects at 768 pixels take 3 MB, which stay in a TPU's VMEM."""


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
    masks: jax.Array, iou: jax.Array, object_score: jax.Array, target: jax.Array, valid: jax.Array, weights: MaskLossWeights
) -> MaskLosses:
    """Compute the losses of one frame.

    Only the candidate with the lowest weighted focal + dice loss is trained. Focal, dice and IoU losses count only for objects that the frame shows.

    Args:
        masks: [O, M, h, w] float32 logits, as the decoder gives them. The losses are those of the masks resized to [H, W].
        iou: [O, M] float32, predicted IoU.
        object_score: [O] float32, logits of the object being there.
        target: [O, H, W] bool, the true masks; all False where the frame does not show the object.
        valid: [O] bool, False for padding objects, which count nothing.
        weights: decide which candidate is best, and whether only that is trained.

    Returns:
        Means over the valid objects; all zero if there is none.
    """
    sums = pixel_sums(masks, target)
    area = jnp.sum(target, axis=(1, 2)).astype(jnp.float32)[:, None]
    focal = sums.focal / target[0].size
    dice = 1 - (2 * sums.overlap + 1) / (sums.probability + area + 1)
    if weights.every_candidate:
        focal, dice = jnp.mean(focal, axis=1), jnp.mean(dice, axis=1)
    else:
        best = jnp.argmin(weights.mask * focal + weights.dice * dice, axis=1)[:, None]
        focal, dice = (jnp.take_along_axis(a, best, axis=1)[:, 0] for a in (focal, dice))

    true_iou = sums.hit / jnp.maximum(sums.predicted + area - sums.hit, 1)
    iou_error = jnp.mean(jnp.abs(iou - true_iou), axis=1)

    present = (area[:, 0] > 0).astype(jnp.float32)
    presence = jnp.maximum(object_score, 0) - object_score * present + jnp.log1p(jnp.exp(-jnp.abs(object_score)))
    share = valid.astype(jnp.float32) / jnp.maximum(jnp.sum(valid), 1).astype(jnp.float32)
    return MaskLosses(
        mask=jnp.sum(focal * present * share),
        dice=jnp.sum(dice * present * share),
        iou=jnp.sum(iou_error * present * share),
        object=jnp.sum(presence * share),
    )


class PixelSums(NamedTuple):
    """Sums over the pixels of each candidate mask [O, M], float32. Only the first three have a gradient.

    Attributes:
        focal: of the focal loss (arXiv 1708.02002, section 3.2).
        probability: of the probability of the object.
        overlap: of that probability on the object.
        predicted: of the pixels with a positive logit.
        hit: of those of them on the object.
    """

    focal: jax.Array
    probability: jax.Array
    overlap: jax.Array
    predicted: jax.Array
    hit: jax.Array


@jax.custom_vjp
def pixel_sums(masks: jax.Array, target: jax.Array) -> PixelSums:
    """Return sums over the pixels of masks [O, M, h, w] float32, resized bilinearly to the size of ``target`` [O, H, W] bool.

    The resized logits, sixteen times as many as the decoder's, are made for some rows at a time, forward and backward, and each is read once. Written out whole
    they would be read again by each sum and by each step of the gradient.
    """
    return PixelSums(*_over_rows(_sums_of_rows, masks, target))


def _sums_of_rows(logits: jax.Array, truth: jax.Array) -> tuple[jax.Array, ...]:
    """Return what some rows [O, M, n, W] add to each of ``PixelSums``; ``truth`` [O, 1, n, W] bool.

    One reduction adds up the pixels of each row for all sums, so that they are read once. The rows are added up apart from that, since a single running sum of
    all pixels would lose four times as many digits.
    """
    prob, hit, on = jax.nn.sigmoid(logits), (logits > 0).astype(jnp.float32), truth.astype(jnp.float32)
    terms = _focal(logits, truth), prob, prob * on, hit, hit * on
    rows = jax.lax.reduce(terms, (jnp.float32(0),) * len(terms), lambda a, b: tuple(map(jax.lax.add, a, b)), (3,))
    return tuple(jnp.sum(row, axis=2) for row in rows)


def _focal(logits: jax.Array, truth: jax.Array) -> jax.Array:
    """Return the focal loss of each pixel, in the shape of ``logits``."""
    wrong, entropy = _wrong_and_entropy(logits, truth)
    return jnp.where(truth, FOCAL_ALPHA, 1 - FOCAL_ALPHA) * entropy * wrong**FOCAL_GAMMA


def _wrong_and_entropy(logits: jax.Array, truth: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the probability of the wrong class of each pixel, and the cross-entropy."""
    wrong_by = jnp.where(truth, -logits, logits)
    return jax.nn.sigmoid(wrong_by), jnp.maximum(wrong_by, 0) + jnp.log1p(jnp.exp(-jnp.abs(wrong_by)))


def _forward(masks: jax.Array, target: jax.Array) -> tuple[PixelSums, tuple[jax.Array, jax.Array]]:
    return pixel_sums(masks, target), (masks, target)


def _backward(saved: tuple[jax.Array, jax.Array], given: PixelSums) -> tuple[jax.Array, None]:
    masks, target = saved
    d_focal, d_prob, d_overlap = (d[..., None, None] for d in given[:3])

    def gradient(logits: jax.Array, truth: jax.Array) -> jax.Array:
        wrong, entropy = _wrong_and_entropy(logits, truth)
        # The derivatives of entropy and probability by the logit of the wrong class are the probability of that class, and that times its complement.
        slope = wrong**FOCAL_GAMMA * (wrong + FOCAL_GAMMA * (1 - wrong) * entropy)
        of_focal = jnp.where(truth, -FOCAL_ALPHA, 1 - FOCAL_ALPHA) * slope
        return d_focal * of_focal + (d_prob + d_overlap * truth.astype(jnp.float32)) * wrong * (1 - wrong)

    return _over_rows(gradient, masks, target, pull=True), None


pixel_sums.defvjp(_forward, _backward)


def _over_rows(work: Callable[[jax.Array, jax.Array], Any], masks: jax.Array, target: jax.Array, pull: bool = False) -> Any:
    """Add up what ``work`` makes of the resized masks [O, M, n, W] and the truth [O, 1, n, W], some rows at a time.

    With ``pull``, ``work`` returns the cotangent of the rows, and the result is that of ``masks``.
    """
    height, width = target.shape[1:]
    rows = math.gcd(height, ROWS)
    vertical, horizontal = (interpolation_weights(masks.shape[axis], size, "linear") for axis, size in ((2, height), (3, width)))
    wide = _product("omhw,Ww->omhW", masks, horizontal)

    def part(total: Any, start: jax.Array) -> tuple[Any, None]:
        own = jax.lax.dynamic_slice_in_dim(jnp.asarray(vertical), start, rows)
        truth = jax.lax.dynamic_slice_in_dim(target, start, rows, axis=1)[:, None]
        found = work(_product("omhW,Hh->omHW", wide, own), truth)
        return jax.tree.map(jnp.add, total, _product("omHW,Hh->omhW", found, own) if pull else found), None

    zero: Any = jnp.zeros_like(wide) if pull else (jnp.zeros(masks.shape[:2], jnp.float32),) * 5
    total, _ = jax.lax.scan(part, zero, jnp.arange(0, height, rows))
    return _product("omhW,Ww->omhw", total, horizontal) if pull else total


def _product(form: str, a: jax.Array, b: jax.Array | np.ndarray) -> jax.Array:
    return jnp.einsum(form, a, b, precision="highest")
