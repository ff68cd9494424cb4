"""The clip of a sample, and the masks of the objects of its turns.

O objects, F frames, H and W height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from unipixel_jax.data.annotation import Annotation, DrawOptions, FrameFiles, Turn, VideoFrames
from unipixel_jax.data.frames import read_frames
from unipixel_jax.errors import UserError
from unipixel_jax.processing.media import Clip


def read_clip(annotation: Annotation, options: DrawOptions, rng: np.random.Generator) -> tuple[Clip, tuple[int, ...]]:
    """Choose and read the frames of a sample, as ``read_frames`` does.

    Raises:
        UserError: the sample has no frames to draw from, or a file cannot be read.
    """
    return read_frames(frames_of(annotation), options, rng)


def frames_of(annotation: Annotation) -> FrameFiles | VideoFrames:
    """Return the media of a sample.

    Raises:
        UserError: the sample has no frames to draw from.
    """
    if not isinstance(annotation.media, FrameFiles | VideoFrames):
        raise UserError(f"{annotation.name} has the media {annotation.media}, expected FrameFiles or VideoFrames for the task {annotation.task}")
    return annotation.media


def read_objects(turns: Sequence[Turn], clip: Clip, indices: Sequence[int], name: str) -> NDArray[np.bool_]:
    """Masks of all objects of the turns, in order, on the frames that were drawn.

    Args:
        turns: each with masks.
        clip: the drawn frames.
        indices: their numbers among the frames of the media [F].
        name: of the sample, for the error.

    Returns:
        bool [O, F, H, W].

    Raises:
        UserError: a turn without masks, or masks that cannot be read.
    """
    size = (clip.frames.shape[1], clip.frames.shape[2])
    out = []
    for turn in turns:
        if turn.masks is None:
            raise UserError(f"{name}: the turn {turn.text!r} has no masks, expected one for each object that it speaks of")
        out.append(turn.masks.read(indices, size))
    return np.concatenate(out)
