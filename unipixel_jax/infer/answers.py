"""From the tokens and masks that programs give to what a ``Prediction`` holds.

F frames, O objects, H height, W width of the media.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from unipixel_jax.infer.masks import ClipMasks, resize_masks, sigmoid
from unipixel_jax.infer.prediction import SegmentedObject
from unipixel_jax.processing.tokenizer import SEG_TOKEN, Tokenizer


def without_end(tokens: NDArray[np.int32], end_tokens: Sequence[int]) -> NDArray[np.int32]:
    """Return an answer's tokens [N] without the one that ends it, which an answer that was cut off does not have."""
    return tokens[:-1] if len(tokens) and tokens[-1] in end_tokens else tokens


def text_and_spans(tokens: NDArray[np.int32], tokenizer: Tokenizer, seg_token: int) -> tuple[str, list[tuple[int, int]]]:
    """Return the text of an answer [N], and the span of each ``<|seg|>`` in it (see ``SegmentedObject``)."""
    text = tokenizer.decode(tokens)
    spans, at = [], 0
    for _ in range(int(np.sum(tokens == seg_token))):
        start = text.index(SEG_TOKEN, at)
        at = start + len(SEG_TOKEN)
        spans.append((start, at))
    return text, spans


def segmented_objects(found: ClipMasks, size: tuple[int, int], spans: Sequence[tuple[int, int] | None]) -> list[SegmentedObject]:
    """Return the objects of a clip.

    Args:
        found: logits of O objects.
        size: height and width of the media.
        spans: where each object's ``<|seg|>`` stands in the answer [O].
    """
    objects = []
    for number, span in enumerate(spans):
        masks = np.stack([resize_masks(frame, size) > 0 for frame in found.low_res[:, number]])
        present = sigmoid(found.presence[:, number])
        objects.append(SegmentedObject.from_masks(masks, present * found.iou[:, number], present, span))
    return objects
