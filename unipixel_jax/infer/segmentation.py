"""Hidden tokens and frames to masks: every frame is encoded once, whatever the number of objects.

F frames, O objects, S side of SAM's square image, D language width.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np

from unipixel_jax.core.buckets import BUCKETS
from unipixel_jax.core.programs import Programs, packed
from unipixel_jax.infer.masks import ClipMasks
from unipixel_jax.infer.tracking import Tracker
from unipixel_jax.models.sam2.neck import FrameFeatures
from unipixel_jax.models.sam2.tracker import Sam2
from unipixel_jax.models.unipixel import SegHead, UniPixelModel

ENCODE_FRAMES = {"cpu": 1}
"""Frames per call of the encoder; an accelerator takes more to fill its matrix units."""


def clip_logits(model: UniPixelModel, frames: np.ndarray, hidden: np.ndarray, dtype: jnp.dtype) -> ClipMasks:
    """Segment and track in frames that are all in memory.

    Args:
        model: the weights.
        frames: [F, S, S, 3] float32, normalised.
        hidden: [O, D] states that predicted `<|seg|>`; O may be 0.
        dtype: compute dtype.
    """
    return track_features(model, encoded(model.sam2, frames, dtype), hidden, dtype, len(frames))


def track_features(model: UniPixelModel, features: Iterable[FrameFeatures], hidden: np.ndarray, dtype: jnp.dtype, count: int) -> ClipMasks:
    """Segment and track in frames that are encoded already; the arguments are those of ``clip_logits``, with ``count`` = F."""
    side = 4 * model.config.sam2.grid
    if not len(hidden):
        empty = np.zeros((count, 0), np.float32)
        return ClipMasks(np.zeros((count, 0, side, side), np.float32), empty, empty)
    tracker = Tracker(model.sam2, dtype, clip_length=count, alone=count == 1 or model.config.sam2_batch_mode)
    tokens = hidden_tokens(model, hidden, dtype)
    rows = []
    for number, own in enumerate(features):
        tracker.observe(number, own)
        if number == 0:
            tracker.add_words(tokens)
        tracker.step()
        rows.append([tracker.output(one) for one in tracker.objects])
    return ClipMasks(*(np.asarray([[getattr(out, name) for out in row] for row in rows], np.float32) for name in ("low_res", "presence", "iou")))


def encoded(sam2: Sam2, squares: Iterable[np.ndarray], dtype: jnp.dtype, size: int | None = None, ahead: bool = True) -> Iterator[FrameFeatures]:
    """The features of frames, each array [1, ...], in order.

    An accelerator encodes several frames a call, and those after them while the host works on these. A CPU takes one by one.

    Args:
        sam2: the weights.
        squares: frames [S, S, 3] float32, normalised.
        dtype: compute dtype.
        size: frames a call; None for what suits this platform.
        ahead: whether frames may be taken before the features of those before them were asked for.
    """
    backend = jax.default_backend()
    size = size or ENCODE_FRAMES.get(backend, 8)
    depth = 1 if ahead and backend != "cpu" else 0
    weights, frames, waiting = packed(sam2), iter(squares), deque[tuple[int, FrameFeatures]]()
    while chunk := list(islice(frames, size)):
        padded = np.stack(chunk + chunk[-1:] * (size - len(chunk)))
        waiting.append((len(chunk), _encode(weights, jax.device_put(padded), dtype=dtype)))
        if len(waiting) > depth:
            yield from _split(*waiting.popleft())
    for count, features in waiting:
        yield from _split(count, features)


def hidden_tokens(model: UniPixelModel, hidden: np.ndarray, dtype: jnp.dtype) -> np.ndarray:
    """The hidden tokens [O, H, d] that prompt the mask decoder, of states that predicted ``<|seg|>`` [O, D]."""
    padding = BUCKETS.objects.size(len(hidden)) - len(hidden)
    return np.asarray(_hidden_tokens(model.seg_head, jax.device_put(np.pad(hidden, ((0, padding), (0, 0))).astype(dtype))))[: len(hidden)]


def _split(count: int, features: FrameFeatures) -> Iterator[FrameFeatures]:
    for place in range(count):
        yield features if features.low.shape[0] == 1 else _one(features, jnp.int32(place))


@Programs
def _encode(sam2: Sam2, frames: jax.Array, *, dtype: jnp.dtype) -> FrameFeatures:
    return sam2.encode(frames.astype(dtype))


@Programs
def _one(features: FrameFeatures, index: jax.Array) -> FrameFeatures:
    return cast(FrameFeatures, jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, index, 1), features))


@Programs
def _hidden_tokens(seg_head: SegHead, hidden: jax.Array) -> jax.Array:
    return seg_head(hidden)
