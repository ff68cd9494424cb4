"""Multimodal: conversations about a photo, a video or nothing, so that the language side keeps what it knows.

F frames. Source: ``MultimodalDataset`` in UniPixel's ``unipixel/dataset/sub_classes/multimodal.py``, ``smart_nframes`` and ``fetch_video`` in its
``unipixel/dataset/utils.py``.

Kinds of turns: "chat", with its own question and answer; all turns are taken in order.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unipixel_jax.data.annotation import Annotation, DrawOptions, Example, Photo, VideoFrames
from unipixel_jax.data.tasks.conversation import conversation
from unipixel_jax.errors import UserError
from unipixel_jax.processing.media import Clip, Content, read_media

FRAMES_PER_SECOND = 2.0
"""How many frames of a second of video are taken, as far as ``sample_frames`` allows."""

_PAIR, _FEWEST = 2, 4

_BUDGET_PHOTO, _BUDGET_VIDEO = 8, 1
"""As ``Example.sample_frames``: a photo has up to 2048 merged tokens, a frame of a video up to 256, however short the video is."""


def draw(annotation: Annotation, options: DrawOptions, rng: np.random.Generator) -> Example:
    """Read the media and the turns. Nothing is random here; the frames are spread evenly.

    Raises:
        UserError: a turn without question or answer, media that is neither a photo nor a video file, a video that is black or has one frame, or a file
            that cannot be read.
    """
    for turn in annotation.turns:
        if not turn.text or not turn.answer:
            raise UserError(f"{annotation.name}: question and answer do not alternate near {(turn.text or turn.answer)[:60]!r}; expected words in each")
    pairs = [(turn.text, turn.answer) for turn in annotation.turns]
    media = annotation.media
    if media is None:
        return Example(annotation, conversation(pairs, None), None)
    if isinstance(media, Photo):
        clip = read_media(media.path, upright=False)
        if not clip.is_image:
            raise UserError(f"{annotation.name}: {media.path} has {len(clip.frames)} frames, expected a photo")
        return Example(annotation, conversation(pairs, "image"), clip, sample_frames=_BUDGET_PHOTO)
    if not isinstance(media, VideoFrames):
        raise UserError(f"{annotation.name} has the media {media}, expected a Photo, VideoFrames or None for the task multimodal")
    if isinstance(media.path, tuple):
        raise UserError(f"{annotation.name} has frames, expected a video file for the task multimodal")
    clip, seconds = _read_video(Path(media.path) if isinstance(media.path, str) else media.path, options.sample_frames[1])
    return Example(annotation, conversation(pairs), clip, seconds_per_frame=seconds, sample_frames=_BUDGET_VIDEO)


def spread_frames(count: int, rate: float, most: int) -> NDArray[np.int64]:
    """The frames to take of a video: two a second, at least 4 and at most ``most``, an even number, from the first to the last.

    Args:
        count: frames of the video.
        rate: its frames per second.
        most: frames at most.

    Raises:
        UserError: the video, or ``most``, has fewer than two frames.
    """
    wanted = min(max(count / rate * FRAMES_PER_SECOND, _FEWEST), most // _PAIR * _PAIR, count)
    taken = int(wanted) // _PAIR * _PAIR
    if taken < _PAIR:
        raise UserError(f"{taken} of the video's {count} frames can be taken (at most {most}), expected at least {_PAIR}")
    return np.linspace(0, count - 1, taken).round().astype(np.int64)


def _read_video(path: Path | Content, most: int) -> tuple[Clip, float]:
    """The clip, and the seconds from one of its frames to the next."""
    if isinstance(path, Path) and not path.is_file():
        raise UserError(f"{path} does not exist: expected a video file")
    from unipixel_jax.processing.video import frame_rate, read_video  # PyAV is an extra, which photos do without

    rate, total = frame_rate(path), 0

    def choose(count: int) -> NDArray[np.int64]:
        nonlocal total
        total = count
        return spread_frames(count, rate, most)

    frames, indices = read_video(path, choose)
    if not frames.any():
        raise UserError(f"{path} is black on all {len(frames)} frames that were taken; expected a video with something to see")
    return Clip(frames, indices, False, path.stem), total / rate / len(frames)
