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
class TrainBatch:
    """Attributes:
    prompt: the conversation, answer included.
    labels: [B, T] int32, -100 where not trained on.
    frames: [B, F, S, S, 3] for SAM.
    seg_positions: [B, O] int32, the position just before each `<|seg|>`; anything for padding objects.
    masks: [B, F, O, S, S] booleans, the truth.
    valid: [B, O] booleans, False for padding objects.
    """

    prompt: Prompt
    labels: jax.Array
    frames: jax.Array
    seg_positions: jax.Array
    masks: jax.Array
    valid: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LossParts:
    """float32 scalars: ``total`` = ``language`` + ``segmentation``.

    ``masks`` holds the parts, averaged over samples; over frames they are summed where clips are tracked, and averaged in batch mode.
    """

    total: jax.Array
    language: jax.Array
    segmentation: jax.Array
    masks: MaskLosses


def objective(
    model: UniPixelModel, batch: TrainBatch, dtype: jnp.dtype, weights: MaskLossWeights | None = None, remat: bool = True
) -> tuple[jax.Array, LossParts]:
    """The loss of a batch, and its parts.

    With ``sam2_batch_mode`` in the configuration each frame is segmented by itself and counts as an object of its own, as in the reference;
    otherwise the clip is tracked, and the sum over frames is divided by their number.
    """
    weights = weights or MaskLossWeights()
    text, batch_mode = model.text, model.config.sam2_batch_mode
    hidden = text(model.embed(batch.prompt, dtype, remat), batch.prompt.position_ids, batch.prompt.segments, remat=remat)
    language = next_token_loss(text.norm(hidden), text.head_weight, batch.labels)
    at = jnp.minimum(batch.seg_positions, hidden.shape[1] - 1)
    tokens = model.seg_head(jnp.take_along_axis(hidden, at[..., None], axis=1))

    def one_sample(sample: tuple[jax.Array, ...]) -> MaskLosses:
        frames, tokens, masks, valid = sample
        features = model.sam2.encode(frames.astype(dtype), remat)
        if batch_mode:
            out = model.sam2.segment_frames(features, tokens, training=True)
        else:
            out = model.sam2.track(features, tokens, frames.shape[0], training=True, remat=remat)
        return _clip_losses(out, masks, valid, weights)

    frames = batch.masks.shape[1]
    parts = jax.lax.map(one_sample, (batch.frames, tokens, batch.masks, batch.valid))
    parts = jax.tree.map(lambda a: jnp.mean(a) / (frames if batch_mode else 1), parts)
    segmentation = parts.total(weights) / (1 if batch_mode else frames)
    return language + segmentation, LossParts(language + segmentation, language, segmentation, parts)


def _clip_losses(out: TrackOutput, masks: jax.Array, valid: jax.Array, weights: MaskLossWeights) -> MaskLosses:
    """Sums over the frames of a clip; ``out`` has a leading axis of frames."""

    def frame(total: MaskLosses, one: tuple[TrackOutput, jax.Array]) -> tuple[MaskLosses, None]:
        seen, target = one
        logits = resize_bilinear(seen.decoded.masks, (target.shape[-2], target.shape[-1]))
        losses = mask_losses(logits, seen.decoded.iou, seen.decoded.object_score, target, valid, weights)
        return jax.tree.map(jnp.add, total, losses), None

    zero = jnp.zeros((), jnp.float32)
    return jax.lax.scan(jax.checkpoint(frame), MaskLosses(zero, zero, zero, zero), (out, masks))[0]
