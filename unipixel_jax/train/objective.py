"""The loss that UniPixel minimises: language loss plus mask loss (section 3.4 of the paper; reference: unipixel/model/qwen2_5_vl.py, forward).

The letters of the shapes are those of ``unipixel_jax/batch.py``; D is the width of the language model, d that of SAM, H the hidden tokens of an object.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp

from unipixel_jax.batch import TrainBatch, TrainClips
from unipixel_jax.config import UniPixelConfig
from unipixel_jax.core.dropout import fold
from unipixel_jax.core.sharding import all_gathered, over_samples
from unipixel_jax.core.stacking import Remat
from unipixel_jax.losses.lm import next_token_loss
from unipixel_jax.losses.mask import MaskLosses, MaskLossWeights, mask_losses
from unipixel_jax.models.sam2.tracker import Sam2, TrackOutput
from unipixel_jax.models.unipixel import UniPixelModel
from unipixel_jax.ops.take import sharded_embedding_lookup

WEIGHTS = MaskLossWeights()
"""The weights of the reference."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LossParts:
    """The losses of a batch and counts, as float32 scalars. Losses are means over samples, and those of masks also over frames.

    Attributes:
        total: ``language`` + ``segmentation``.
        language: the next-token loss.
        segmentation: the weighted sum of ``masks``.
        masks: the unweighted mask losses.
        clips: the number of samples that segment something.
        segs: the number of ``<|seg|>`` tokens in the answers.
        seg_said: the number of them that the model would predict itself, given all tokens before.
    """

    total: jax.Array
    language: jax.Array
    segmentation: jax.Array
    masks: MaskLosses
    clips: jax.Array
    segs: jax.Array
    seg_said: jax.Array


class Segments(Protocol):
    """A model that has a SAM 2, and a configuration that says how clips are segmented."""

    sam2: Sam2
    config: UniPixelConfig


def objective(
    model: UniPixelModel, batch: TrainBatch, dtype: jnp.dtype, weights: MaskLossWeights = WEIGHTS, remat: Remat = "full"
) -> tuple[jax.Array, LossParts]:
    """Return the loss of a batch of rows (float32 scalar), and its parts.

    The rows are sharded over the devices. What a row draws at random depends on its number in the batch, and so not on the devices.

    Args:
        model: the weights.
        batch: arrays with a leading axis of rows, each of which has index tables of its own; ``label_weights`` sum to 1 over all rows.
        dtype: the compute dtype.
        weights: the weights of the parts of the mask loss.
        remat: what the backward pass computes again (core/stacking.py).
    """

    def one(row: TrainBatch, x: jax.Array, number: jax.Array) -> tuple[jax.Array, MaskLosses | None]:
        return _outputs(fold(model, number), row, x, weights, remat)

    model = all_gathered(model)
    embedded = sharded_embedding_lookup(model.text.embed.weight[...], batch.inputs.input_ids, dtype)
    normed, masks = over_samples(one)(batch, embedded, jnp.arange(len(batch.labels)))
    if masks is not None and batch.clips is not None:
        counted = jnp.any(batch.clips.valid, axis=(1, 2)).astype(jnp.float32)
        masks = jax.tree.map(lambda a: jnp.sum(a * counted) / jnp.maximum(jnp.sum(counted), 1.0), masks)
    normed, labels, shares = (a.reshape(-1, *a.shape[2:]) for a in (normed, batch.labels, batch.label_weights))
    return _total(model, normed, labels, shares, batch.clips, masks, weights)


def _outputs(model: UniPixelModel, row: TrainBatch, x: jax.Array, weights: MaskLossWeights, remat: Remat) -> tuple[jax.Array, MaskLosses | None]:
    """Return the normalised hidden states [B, L, D] of a row's embedded tokens ``x`` [B, L, D], and its mask losses, where something is segmented.

    With ``sam2_batch_mode`` in the configuration each frame is segmented by itself, as in the reference; otherwise the clip is tracked. With ``remat="half"``
    the vision tower is computed again: a byte of the language model's results saves more than twice the FLOPs, which are as many as the layer is wide.
    """
    inputs, text = row.inputs, model.text
    hidden = text(model.merge_embeddings(x, inputs, "full" if remat == "half" else remat), inputs.position_ids, inputs.segments, remat=remat)
    if row.clips is None:
        return text.norm(hidden), None
    at = jnp.minimum(inputs.seg_positions, hidden.shape[1] - 1)
    prompts = jnp.take_along_axis(hidden, at[..., None], axis=1)
    clip = jax.tree.map(lambda a: a[0], row.clips)  # a row in which something is segmented holds one sample
    return text.norm(hidden), clip_losses(model, model.seg_head(prompts)[0], clip, x.dtype, weights, remat)


def _total(
    model: UniPixelModel,
    normed: jax.Array,
    labels: jax.Array,
    label_weights: jax.Array,
    clips: TrainClips | None,
    masks: MaskLosses | None,
    weights: MaskLossWeights,
) -> tuple[jax.Array, LossParts]:
    language, (seg_said, segs) = next_token_loss(normed, model.text.head_weight, labels, label_weights, model.config.seg_token_id)
    zero = jnp.zeros((), jnp.float32)
    masks = MaskLosses(zero, zero, zero, zero) if masks is None else masks
    segmentation = masks.total(weights)
    segmenting = zero if clips is None else jnp.sum(jnp.any(clips.valid, axis=-1)).astype(jnp.float32)
    return language + segmentation, LossParts(language + segmentation, language, segmentation, masks, segmenting, segs, seg_said)


def clip_losses(model: Segments, tokens: jax.Array, clip: TrainClips, dtype: jnp.dtype, weights: MaskLossWeights, remat: Remat) -> MaskLosses:
    """Return the mask losses of a clip, means over its frames.

    With ``remat`` "dots" and "half" all of SAM is computed again nevertheless: its products need several times the memory of those of the language model, and
    less of its time is spent on them (docs/plan.md).

    Args:
        model: the weights.
        tokens: [O, H, d] hidden tokens of the objects.
        clip: the frames and the target masks, without the dimension B.
        dtype: the compute dtype.
        weights: the weights by which the best of three masks is chosen.
        remat: what the backward pass computes again (core/stacking.py).
    """
    remat = "full" if remat in ("dots", "half") else remat
    features = model.sam2.encode(clip.frames.astype(dtype), remat)
    # A single frame needs neither a memory nor gradients through making one.
    if model.config.sam2_batch_mode or len(clip.frames) == 1:
        out = model.sam2.segment_frames(features, tokens, training=True)
    else:
        out = model.sam2.track(features, tokens, clip.counts, training=True, remat=remat)
    sums = _sum_over_frames(out, clip.counts, clip.masks, clip.valid, weights)
    return jax.tree.map(lambda a: a / clip.counts.astype(jnp.float32), sums)


def _sum_over_frames(out: TrackOutput, count: jax.Array, masks: jax.Array, valid: jax.Array, weights: MaskLossWeights) -> MaskLosses:
    """Return the sums of the mask losses over the first ``count`` frames of a clip; ``out`` and ``masks`` have a leading axis of frames."""

    def frame(total: MaskLosses, one: tuple[TrackOutput, jax.Array, jax.Array]) -> tuple[MaskLosses, None]:
        seen, target, number = one
        decoded = seen.decoded
        losses = mask_losses(decoded.masks, decoded.iou, decoded.object_score, target, valid & (number < count), weights)
        return jax.tree.map(jnp.add, total, losses), None

    zero = jnp.zeros((), jnp.float32)
    numbers = jnp.arange(masks.shape[0])
    return jax.lax.scan(frame, MaskLosses(zero, zero, zero, zero), (out, masks, numbers))[0]
