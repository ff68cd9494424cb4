"""Conversations as token ids: images expanded to one token per merged token, and labels for training.

Source: ``Qwen2_5_VLProcessor`` of transformers 4.53 and ``preprocess_chatml`` in UniPixel's ``unipixel/dataset/utils.py``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unipixel_jax.config import VisionConfig
from unipixel_jax.errors import UserError
from unipixel_jax.processing.tokenizer import IMAGE_TOKEN, VIDEO_TOKEN, Tokenizer

IGNORE_INDEX = -100
"""Label of a token that the loss leaves out."""

FRAMES_PER_SECOND = 2.0
"""The rate at which the reference takes decoded frames to follow one another, whatever the clip's own rate."""

_IMAGE = re.compile(f"({re.escape(VIDEO_TOKEN)}|{re.escape(IMAGE_TOKEN)})")
_ASSISTANT_TURN = re.compile(r"<\|im_start\|>assistant\n(.*?<\|im_end\|>)", re.DOTALL)


def seconds_per_grid(config: VisionConfig, frames_per_second: float = FRAMES_PER_SECOND) -> float:
    """Seconds between two pairs of frames, ``second_per_grid_ts`` of the rotary positions."""
    return config.temporal_patch_size / frames_per_second


def expand_image_tokens(text: str, grid_thw: ArrayLike, config: VisionConfig) -> str:
    """Repeat each ``<|video_pad|>`` or ``<|image_pad|>`` of a prompt as often as its clip or image has merged tokens.

    Args:
        text: a rendered prompt with one such token per clip.
        grid_thw: patches of each clip in time, height and width [clips, 3].
        config: the vision tower's sizes.

    Raises:
        UserError: the numbers of clips and of those tokens differ.
    """
    first, *rest = _IMAGE.split(text)
    grids = np.asarray(grid_thw).reshape(-1, 3)
    tokens, pieces = rest[::2], rest[1::2]
    if len(tokens) != len(grids):
        raise UserError(f"the prompt holds {len(tokens)} {VIDEO_TOKEN} or {IMAGE_TOKEN} for {len(grids)} clips: leave those tokens out of your text")
    counts = [math.prod(grid.tolist()) // config.merge_unit for grid in grids]
    return first + "".join(token * n + piece for token, n, piece in zip(tokens, counts, pieces, strict=True))


def chatml_labels(text: str, tokenizer: Tokenizer) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Token ids of a finished conversation, and what the language loss is to predict.

    Args:
        text: the rendered conversation, images expanded.
        tokenizer: the checkpoint's tokenizer.

    Returns:
        Token ids [L], int32, and labels [L], int32: the id where a token belongs to an assistant's answer or ends it, ``IGNORE_INDEX`` elsewhere.

    Raises:
        UserError: no assistant's turn is complete.
    """
    spans: Sequence[tuple[int, int]] = [match.span(1) for match in _ASSISTANT_TURN.finditer(text)]
    if not spans:
        raise UserError("the conversation has no finished assistant turn, so there is nothing to learn: expected at least one")
    ids, starts = tokenizer.encode_with_starts(text)
    counts = np.zeros(len(ids), bool)
    for first, last in spans:
        counts |= (starts >= first) & (starts < last)
    return ids, np.where(counts, ids, np.int32(IGNORE_INDEX))
