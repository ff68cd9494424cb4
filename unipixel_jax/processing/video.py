"""Chosen frames of a video file, decoded without holding the others.

F frames, H height, W width. The first pass reads packets and decodes nothing; it tells how many frames there are, their times, and where the key
frames lie. The second jumps to the key frame before each wanted frame, unless the decoder is already past it; where jumping does not work, it counts.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from unipixel_jax.errors import UserError
from unipixel_jax.processing.media import Content
from unipixel_jax.processing.resize import check_ratio

MAX_PIXELS = 89_478_485
"""Pixels of a frame at most, the same as Pillow's limit for photos."""


@dataclass(frozen=True)
class _Track:
    """What the packets tell: the times of all frames in order (none where a frame has no time of its own), and the times of the key frames."""

    count: int
    times: list[int]
    keys: list[int]


def read_video(path: Path | Content, choose: Callable[[int], NDArray[np.int64]]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Decode some frames of a video.

    Args:
        path: the file, or its content.
        choose: from the number of frames in the video to the numbers of the wanted ones, increasing.

    Returns:
        RGB pixels [F, H, W, 3], turned as the file asks; and the frames' numbers [F].

    Raises:
        UserError: not a video, without frames, broken or incomplete, too large or too thin.
    """
    try:
        with _open(path) as container:
            track = _scan(container, path)
        indices = choose(track.count)
        frames = _decode(path, _seek_frames(path, track, indices), indices) if track.times else None
        if frames is None:
            frames = _decode(path, _count_frames(path, indices), indices)
    except av.error.FFmpegError as error:
        raise UserError(f"{path} is not a photo or video that can be read, or is broken ({error.strerror}): expected for example PNG, JPEG or MP4") from error
    if frames is None:
        raise UserError(f"{path} is broken or incomplete (not all of its {track.count} frames can be decoded): copy it again")
    return frames, indices


def frame_rate(path: Path | Content) -> float:
    """Frames per second of a video, on average.

    Raises:
        UserError: not a video, or one that does not tell.
    """
    try:
        with _open(path) as container:
            rate = container.streams.video[0].average_rate if container.streams.video else None
    except av.error.FFmpegError as error:
        raise UserError(f"{path} is not a video that can be read ({error.strerror}): expected for example MP4") from error
    if not rate:
        raise UserError(f"{path} does not tell how many frames a second it has; expected a video file such as MP4: encode it again")
    return float(rate)


def _open(path: Path | Content) -> Any:
    return av.open(path.open() if isinstance(path, Content) else str(path))


def _scan(container: Any, path: Path | Content) -> _Track:
    if container.format.name == "tty":  # FFmpeg takes any text for a drawing
        raise UserError(f"{path} is a text file: expected a photo or a video")
    if not container.streams.video:
        raise UserError(f"{path} has no pictures in it, only {', '.join(s.type for s in container.streams) or 'nothing'}: expected a photo or a video")
    stream = container.streams.video[0]
    if not stream.width or not stream.height:
        raise UserError(f"{path} is broken or incomplete (it tells no picture size): copy it again")
    check_ratio(stream.height, stream.width, str(path))
    if stream.width * stream.height > MAX_PIXELS:
        raise UserError(f"{path} has {stream.width * stream.height} pixels a frame, expected at most {MAX_PIXELS}: make it smaller")
    packets = [p for p in container.demux(stream) if p.size]
    if stream.frames > len(packets) or any(p.is_corrupt for p in packets):
        raise UserError(f"{path} is broken or incomplete ({len(packets)} of {stream.frames or 'its'} frames are there): copy it again")
    shown = [p for p in packets if not p.is_discard]
    if not shown:
        raise UserError(f"{path} is a video with no frames, expected at least one")
    times = sorted({p.pts for p in shown if p.pts is not None})
    return _Track(len(shown), times if len(times) == len(shown) else [], sorted(p.pts for p in packets if p.is_keyframe and p.pts is not None))


def _decode(path: Path | Content, frames: Iterator[Any], indices: NDArray[np.int64]) -> NDArray[np.uint8] | None:
    """The pixels of the wanted frames, or nothing where one of them did not come."""
    out: NDArray[np.uint8] | None = None
    number = -1
    for number, frame in enumerate(frames):
        pixels = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
        if out is None:
            out = np.empty((len(indices), *pixels.shape), np.uint8)
        if pixels.shape != out.shape[1:]:
            raise UserError(f"{path}: frame {indices[number]} is of another size than the first; expected one size throughout")
        out[number] = pixels
    return out if number + 1 == len(indices) else None


def _seek_frames(path: Path | Content, track: _Track, indices: NDArray[np.int64]) -> Iterator[Any]:
    """The wanted frames by their times; ends early where jumping in this file does not lead to the frame asked for."""
    with _open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        decoder, reached = container.decode(stream), track.times[0]
        for i in indices:
            wanted = track.times[i]
            place = bisect.bisect_right(track.keys, wanted) - 1
            if place >= 0 and track.keys[place] > reached:
                container.seek(track.keys[place], stream=stream)
                decoder = container.decode(stream)
            frame = next((f for f in decoder if f.pts is not None and f.pts >= wanted), None)
            if frame is None or frame.pts != wanted:
                return
            reached = wanted
            yield frame


def _count_frames(path: Path | Content, indices: NDArray[np.int64]) -> Iterator[Any]:
    """The wanted frames by counting from the start, which needs no times but decodes everything before them."""
    wanted = set(indices.tolist())
    with _open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                yield frame
            if number == indices[-1]:
                return
