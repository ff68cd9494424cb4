"""Hidden tokens and frames to masks: every frame is encoded once, all objects are tracked together.

F frames, O objects, S side of SAM's square image, D language width.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from unipixel_jax.core.buckets import BUCKETS, BucketTable
from unipixel_jax.core.programs import Programs
from unipixel_jax.models.sam2.neck import FrameFeatures
from unipixel_jax.models.unipixel import UniPixelModel
from unipixel_jax.ops.resize import interpolation_weights

ENCODE_FRAMES = {"cpu": 1}
"""Frames per call of the encoder; an accelerator takes more to fill its matrix units."""


@dataclass(frozen=True)
class ClipMasks:
    """Attributes:
    low_res: [F, O, S/4, S/4] float32 logits; -1024 where an object is not in the frame.
    presence: [F, O] float32 logits of the object score.
    iou: [F, O] float32, predicted IoU of the mask.
    """

    low_res: np.ndarray
    presence: np.ndarray
    iou: np.ndarray


def clip_logits(model: UniPixelModel, frames: np.ndarray, hidden: np.ndarray, dtype: jnp.dtype, buckets: BucketTable = BUCKETS) -> ClipMasks:
    """Segment and track.

    Args:
        model: the weights.
        frames: [F, S, S, 3] float32, normalised.
        hidden: [O, D] states that predicted `<|seg|>`; O may be 0.
        dtype: compute dtype.
        buckets: the sizes to pad to.
    """
    (count, side), objects = frames.shape[:2], len(hidden)
    if not objects:
        empty = np.zeros((count, 0), np.float32)
        return ClipMasks(np.zeros((count, 0, side // 4, side // 4), np.float32), empty, empty)
    hidden = np.pad(hidden, ((0, buckets.objects.size(objects) - objects), (0, 0)))
    features = encode_frames(model, frames, dtype, buckets.frames.size(count))
    alone = count == 1 or model.config.sam2_batch_mode
    out = track_clip(model, features, jax.device_put(hidden.astype(dtype)), jax.device_put(np.int32(count)), alone=alone)
    return ClipMasks(*(np.asarray(a)[:count, :objects] for a in out))


def encode_frames(model: UniPixelModel, frames: np.ndarray, dtype: jnp.dtype, padded: int) -> FrameFeatures:
    """SAM features of frames [F, S, S, 3]; the result has a leading axis of ``padded``, and beyond F it means nothing."""
    size = ENCODE_FRAMES.get(jax.default_backend(), 8)
    chunks = []
    for start in range(0, len(frames), size):
        chunk = frames[start : start + size]
        padded_chunk = np.pad(chunk, ((0, size - len(chunk)), (0, 0), (0, 0), (0, 0)))
        chunks.append(_encode(model, jax.device_put(padded_chunk), dtype=dtype))
    chunks += chunks[-1:] * (-(-padded // size) - len(chunks))
    return _join(tuple(chunks), length=padded)


def resize_masks(low_res: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Logits [..., h, w] at the size of the media [..., *size], bilinear without antialiasing, on the host: media come in every size."""
    rows, columns = interpolation_weights(low_res.shape[-2], size[0], "linear"), interpolation_weights(low_res.shape[-1], size[1], "linear")
    return np.matmul(np.matmul(rows, low_res), columns.T)


@Programs
def _encode(model: UniPixelModel, frames: jax.Array, *, dtype: jnp.dtype) -> FrameFeatures:
    return model.sam2.encode(frames.astype(dtype))


@Programs
def _join(chunks: tuple[FrameFeatures, ...], *, length: int) -> FrameFeatures:
    return jax.tree.map(lambda *a: jnp.concatenate(a)[:length], *chunks)


@Programs
def track_clip(model: UniPixelModel, features: FrameFeatures, hidden: jax.Array, count: jax.Array, *, alone: bool) -> tuple[jax.Array, ...]:
    """Masks [F, O, S/4, S/4], object scores [F, O] and predicted IoU [F, O] of objects with states ``hidden`` [O, D].

    ``count`` is the true number of frames; with ``alone`` every frame is segmented by itself.
    """
    tokens = model.seg_head(hidden)
    out = model.sam2.segment_frames(features, tokens) if alone else model.sam2.track(features, tokens, count)
    return out.low_res, out.decoded.object_score, jnp.max(out.decoded.iou, axis=-1)
