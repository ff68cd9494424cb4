"""What UniPixel minimises: language loss plus mask loss (section 3.4 of the paper; reference: unipixel/model/qwen2_5_vl.py, forward).

B samples, T tokens, F frames, O objects, S side of SAM's square image, D language width.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from unipixel_jax.losses.lm import next_token_loss
from unipixel_jax.losses.mask import MaskLosses, MaskLossWeights, mask_losses
from unipixel_jax.models.sam2.tracker import TrackOutput
from unipixel_jax.models.unipixel import Prompt, UniPixelModel
from unipixel_jax.ops.resize import resize_bilinear


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainClips:
    """What SAM is to find, one clip a sample.

    Attributes:
        frames: [B, F, S, S, 3], normalised.
        counts: [B] int32, true frames of each clip; later frames are padding and count nothing.
        seg_positions: [B, O] int32, the position just before each `<|seg|>`; anything for padding objects.
        masks: [B, F, O, S, S] booleans, the truth.
        valid: [B, O] booleans, False for padding objects.
    """

    frames: jax.Array
    counts: jax.Array
    seg_positions: jax.Array
    masks: jax.Array
    valid: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainBatch:
    """Attributes:
    prompt: the conversations, answers included.
    labels: [B, T] int32, -100 where not trained on.
    label_weights: [B, T] float32, how much each label counts; they sum to 1 over a batch.
    clips: None where nothing is segmented.
    """

    prompt: Prompt
    labels: jax.Array
    label_weights: jax.Array
    clips: TrainClips | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LossParts:
    """float32 scalars: ``total`` = ``language`` + ``segmentation``; ``masks`` holds the unweighted parts of the latter, all means over samples and frames."""

    total: jax.Array
    language: jax.Array
    segmentation: jax.Array
    masks: MaskLosses


def objective(
    model: UniPixelModel, batch: TrainBatch, dtype: jnp.dtype, weights: MaskLossWeights = MaskLossWeights(), remat: bool = True
) -> tuple[jax.Array, LossParts]:
    """The loss of a batch, and its parts.

    With ``sam2_batch_mode`` in the configuration each frame is segmented by itself, as in the reference; otherwise the clip is tracked.

    Args:
        model: the weights.
        batch: the samples.
        dtype: compute dtype.
        weights: of the parts of the mask loss.
        remat: recompute layers in the backward pass.
    """
    text = model.text
    hidden = text(model.embed(batch.prompt, dtype, remat), batch.prompt.position_ids, batch.prompt.segments, remat=remat)
    language = next_token_loss(text.norm(hidden), text.head_weight, batch.labels, batch.label_weights)
    if batch.clips is None:
        zero = jnp.zeros((), jnp.float32)
        return language, LossParts(language, language, zero, MaskLosses(zero, zero, zero, zero))
    masks = clip_losses(model, hidden, batch.clips, dtype, weights, remat)
    segmentation = masks.total(weights)
    return language + segmentation, LossParts(language + segmentation, language, segmentation, masks)


def clip_losses(model: UniPixelModel, hidden: jax.Array, clips: TrainClips, dtype: jnp.dtype, weights: MaskLossWeights, remat: bool) -> MaskLosses:
    """Mask losses, means over samples and frames; ``hidden`` is [B, T, D] before the final norm."""
    (samples, length), sam2 = clips.frames.shape[:2], model.sam2
    # a single frame needs no memory, nor gradients through making it
    alone = model.config.sam2_batch_mode or length == 1
    at = jnp.minimum(clips.seg_positions, hidden.shape[1] - 1)
    tokens = model.seg_head(jnp.take_along_axis(hidden, at[..., None], axis=1))
    features = sam2.encode(clips.frames.reshape(-1, *clips.frames.shape[2:]).astype(dtype), remat)
    features = jax.tree.map(lambda a: a.reshape(samples, length, *a.shape[1:]), features)

    def one_sample(features: jax.Array, tokens: jax.Array, count: jax.Array, masks: jax.Array, valid: jax.Array) -> MaskLosses:
        if alone:
            out = sam2.segment_frames(features, tokens, training=True)
        else:
            out = sam2.track(features, tokens, count, training=True, remat=remat)
        sums = _sum_over_frames(out, count, masks, valid, weights)
        return jax.tree.map(lambda a: a / count.astype(jnp.float32), sums)

    return jax.tree.map(jnp.mean, jax.vmap(one_sample)(features, tokens, clips.counts, clips.masks, clips.valid))


def _sum_over_frames(out: TrackOutput, count: jax.Array, masks: jax.Array, valid: jax.Array, weights: MaskLossWeights) -> MaskLosses:
    """Sums over the first ``count`` frames of a clip; ``out`` has a leading axis of frames."""

    def frame(total: MaskLosses, one: tuple[TrackOutput, jax.Array, jax.Array]) -> tuple[MaskLosses, None]:
        seen, target, number = one
        logits = resize_bilinear(seen.decoded.masks, (target.shape[-2], target.shape[-1]))
        losses = mask_losses(logits, seen.decoded.iou, seen.decoded.object_score, target, valid & (number < count), weights)
        return jax.tree.map(jnp.add, total, losses), None

    zero = jnp.zeros((), jnp.float32)
    numbers = jnp.arange(masks.shape[0])
    return jax.lax.scan(jax.checkpoint(frame), MaskLosses(zero, zero, zero, zero), (out, masks, numbers))[0]
