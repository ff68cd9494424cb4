"""Chosen frames of a video file, decoded without holding the others.

F frames, H height, W width. The first pass reads packets and decodes nothing; it tells how many frames there are, their times, and where the key
frames lie. The second jumps to the key frame before each wanted frame, unless the decoder is already past it; where jumping does not work, it counts.
"""

from __future__ import annotations

import bisect
import contextlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, NamedTuple

import av
import numpy as np
from av.stream import Disposition
from numpy.typing import NDArray

from unipixel_jax.core.files import require_regular_file
from unipixel_jax.errors import TooLarge, UserError
from unipixel_jax.processing.images import MAX_CLIP_PIXELS, MAX_PIXELS, Content
from unipixel_jax.processing.resize import check_ratio

CONTAINERS = (
    "mov,matroska,avi,mpegts,mpeg,mpegvideo,m4v,h263,h264,hevc,vvc,obu,av1,ivf,flv,asf,ogg,rm,mxf,nut,gxf,wtv,dv,dhav,yuv4mpegpipe,mjpeg,dirac,vc1,smjpeg"
)
"""FFmpeg's names of the containers that are opened. Others draw text as images, take apart photos, or open further files and addresses (playlists)."""

MAX_DECODED_PIXELS = 250_000_000_000
"""Pixels decoded to reach the wanted frames, about an hour of 1920x1080 with a single key frame; more would take many minutes."""

FRAME_COST = 50_000
"""Pixels that take as long to decode as a frame does besides its pixels."""


class _Input:
    """An opened file as FFmpeg reads it. A broken one makes FFmpeg seek before its beginning, and PyAV would print the error that the file raises then."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.read, self.tell = file.read, file.tell

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a position and return it, or return -1 where the file has no such position."""
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError):
            return -1


class _Packet(NamedTuple):
    """A packet without its bytes, which are not kept, so that memory does not grow with the film."""

    time: int | None
    shown: bool
    key: bool


@dataclass(frozen=True)
class _Track:
    """A video track as its packets describe it.

    Attributes:
        count: how many frames are shown.
        times: the times of all frames in order; none where a frame has no time of its own.
        keys: the times of the key frames.
        pixels: pixels of a frame.
        complete: whether the file holds all that it announces.
    """

    count: int
    times: list[int]
    keys: list[int]
    pixels: int
    complete: bool = True


def read_video(path: Path | Content, choose: Callable[[int], NDArray[np.int64]]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Decode some frames of a video.

    Frames that an edit list hides do not count, nor do those before the first key frame, which no decoder can show.

    Args:
        path: the file, or its content.
        choose: a function from the number of frames in the video to the numbers of the wanted ones, increasing [F], int64.

    Returns:
        RGB pixels [F, H, W, 3], uint8, turned as the file asks; and the frames' numbers [F], int64.

    Raises:
        UserError: the file is no video, without frames or a decoder for them, broken or incomplete, too large or too thin.
    """
    with _open(path) as (container, stream):
        track = _scan(container, stream, path)
    indices, frames = _read(path, track, choose)
    if frames is None and track.keys and track.times and track.times[0] < track.keys[0]:
        # Images that are shown before the first key frame but stored after it may need frames that were cut off in front of it.
        times = track.times[bisect.bisect_left(track.times, track.keys[0]) :]
        indices, frames = _read(path, replace(track, count=len(times), times=times), choose)
    if frames is None:
        raise UserError(f"{path} is broken or incomplete (not all of its {track.count} frames can be decoded): copy it again")
    return frames, indices


@dataclass(frozen=True)
class VideoLength:
    """What the packets of a video tell without decoding it.

    Attributes:
        count: how many frames are shown.
        size: height and width in pixels, turned as the file asks.
        rate: frames per second on average; None where the file does not tell.
    """

    count: int
    size: tuple[int, int]
    rate: float | None


def probe_video(path: Path | Content) -> VideoLength:
    """Count the frames of a video by its packets, and decode the first one.

    Raises:
        UserError: see ``read_video``. A video that ends early is no error here; the packets that are there are counted.
    """
    with _open(path) as (container, stream):
        track = _scan(container, stream, path, broken=True)
        rate = float(stream.average_rate) if stream.average_rate else None
    with contextlib.closing(iterate_video(path)) as frames:
        first = next(frames, None)
    if first is None:
        raise UserError(f"{path} is broken or incomplete (none of its {track.count} frames can be decoded): copy it again")
    return VideoLength(track.count, (first.pixels.shape[0], first.pixels.shape[1]), rate)


class VideoFrame(NamedTuple):
    """A decoded frame: its time in seconds where the file tells it, and RGB pixels [H, W, 3], uint8."""

    seconds: float | None
    pixels: NDArray[np.uint8]


def iterate_video(path: Path | Content) -> Generator[VideoFrame, None, None]:
    """Decode all frames of a video in order, one at a time, so that memory does not grow with its length. They are those that ``read_video`` numbers.

    Raises:
        UserError: the file is no video, or breaks off: whatever came before has been yielded.
    """
    with _open(path) as (container, stream):
        track = _scan(container, stream, path, broken=True)
    times = set(track.times)
    with _open(path) as (container, stream):
        count, shape = 0, None
        for frame in container.decode(stream):
            if times and frame.pts not in times:
                continue
            pixels = np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)))
            shape = shape or pixels.shape
            if pixels.shape != shape or pixels.shape[0] * pixels.shape[1] > MAX_PIXELS:
                raise UserError(f"{path}: frame {count} is of another size than the first, {pixels.shape[1]}x{pixels.shape[0]}; expected one size throughout")
            yield VideoFrame(None if frame.time is None else float(frame.time), pixels)
            count += 1
    if count < track.count and track.complete:
        raise UserError(f"{path} is broken or incomplete ({count} of its {track.count} frames can be decoded): copy it again")
    if not track.complete:
        raise UserError(f"{path} is broken or incomplete (it breaks off after {count} frames): copy it again")


def frame_rate(path: Path | Content) -> float:
    """Frames per second of a video, on average.

    Raises:
        UserError: the file is no video, or does not tell its frame rate.
    """
    with _open(path) as (_, stream):
        rate = stream.average_rate
    if not rate:
        raise UserError(f"{path} does not tell how many frames a second it has; expected a video file such as MP4: encode it again")
    return float(rate)


@contextlib.contextmanager
def _open(path: Path | Content) -> Iterator[tuple[Any, Any]]:
    """The container and its video track. FFmpeg gets an opened file, since it takes what stands before a colon in a name for a protocol."""
    if not isinstance(path, Content):
        require_regular_file(path, "expected a photo or a video")
    try:
        with (
            path.open() if isinstance(path, Content) else open(path, "rb") as file,
            av.open(_Input(file), options={"format_whitelist": CONTAINERS}, buffer_size=1 << 18) as container,
        ):
            yield container, _video_track(container, path)
    except UserError:
        raise
    except Exception as error:  # besides FFmpegError, PyAV raises ValueError, LookupError and others for files that it does not understand
        unknown = isinstance(error, av.error.ArgumentError)  # the error for a container that is not in the list
        told = "unknown format" if unknown else getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(f"{path} is not a photo or video that can be read, or is broken ({told}): expected for example PNG, JPEG or MP4") from error


def _video_track(container: Any, path: Path | Content) -> Any:
    """The track that players show: not a cover, nor a thumbnail, and one that can be decoded."""
    if not container.streams.video:
        raise UserError(f"{path} has no images in it, only {', '.join(s.type for s in container.streams) or 'nothing'}: expected a photo or a video")
    tracks = [s for s in container.streams.video if not s.disposition & (Disposition.attached_pic | Disposition.timed_thumbnails)]
    if not tracks:
        raise UserError(f"{path} has a cover image, but no video: expected a photo or a video")
    known = [s for s in tracks if s.codec_context is not None]
    if not known:
        raise UserError(f"{path} is a video in a format that cannot be decoded here: convert it, for example with: ffmpeg -i VIDEO -c:v libx264 OUT.mp4")
    track = max(known, key=lambda s: (bool(s.disposition & Disposition.default), s.width * s.height))  # the first one of several alike
    if not track.width or not track.height:
        raise UserError(f"{path} is broken or incomplete (it tells no image size): copy it again")
    check_ratio(track.height, track.width, str(path))
    if track.width * track.height > MAX_PIXELS:
        raise TooLarge(f"{path} has {track.width * track.height} pixels a frame, expected at most {MAX_PIXELS}: make it smaller")
    track.thread_type = "AUTO"
    return track


def _scan(container: Any, stream: Any, path: Path | Content, broken: bool = False) -> _Track:
    """What the packets tell; those of a file that ends early only where ``broken`` files are accepted."""
    packets: list[_Packet] = []
    complete = True
    for packet in container.demux(stream):
        if packet.is_corrupt:
            complete = False
            if broken and packets:
                break
            raise UserError(f"{path} is broken or incomplete (it ends, or is damaged, after {len(packets)} frames): copy it again")
        if packet.size:
            packets.append(_Packet(packet.pts, not packet.is_discard, packet.is_keyframe))
    size = path.size if isinstance(path, Content) else path.stat().st_size
    beyond = sum(entry.pos + entry.size > size for entry in stream.index_entries)
    if beyond and not (broken and packets):
        raise UserError(f"{path} is broken or incomplete ({beyond} of {len(stream.index_entries)} frames lie beyond its end): copy it again")
    first = next((number for number, packet in enumerate(packets) if packet.key), 0)
    shown = [packet for packet in packets[first:] if packet.shown]
    if not shown:
        raise UserError(f"{path} is a video with no frames, expected at least one")
    times = sorted({p.time for p in shown if p.time is not None})
    keys = sorted(p.time for p in packets if p.key and p.time is not None)
    return _Track(len(shown), times if len(times) == len(shown) else [], keys, stream.width * stream.height, complete and not beyond)


def _read(path: Path | Content, track: _Track, choose: Callable[[int], NDArray[np.int64]]) -> tuple[NDArray[np.int64], NDArray[np.uint8] | None]:
    """The wanted frames' numbers, and their pixels, or None where one of them did not come."""
    indices = choose(track.count)
    if len(indices) * track.pixels > MAX_CLIP_PIXELS:
        raise TooLarge(f"{path}: {len(indices)} frames have {len(indices) * track.pixels} pixels, expected {MAX_CLIP_PIXELS}: take fewer, or make it smaller")
    frames = None
    if track.times:
        _require_reachable(path, track, _steps(track, indices))
        frames = _decode(path, _seek_frames(path, track, indices), indices)
    if frames is None:
        _require_reachable(path, track, int(indices[-1]) + 1)
        frames = _decode(path, _count_frames(path, indices), indices)
    return indices, frames


def _steps(track: _Track, indices: NDArray[np.int64]) -> int:
    """How many frames are decoded to reach the wanted ones, each from the key frame or the wanted frame before it."""
    wanted = np.asarray(track.times)[indices]
    keys = np.asarray([track.times[0], *track.keys])[np.searchsorted(track.keys, wanted, "right")]
    starts = np.maximum(np.searchsorted(track.times, keys), np.concatenate([[0], indices[:-1]]))
    return int(np.maximum(indices - starts, 0).sum()) + len(indices)


def _require_reachable(path: Path | Content, track: _Track, steps: int) -> None:
    if steps * (track.pixels + FRAME_COST) > MAX_DECODED_PIXELS:
        raise TooLarge(
            f"{path}: {steps} frames would be decoded to reach those wanted, which takes too long, since key frames are too few or have no times: "
            "encode it again, for example with: ffmpeg -i VIDEO -g 48 OUT.mp4"
        )


def _decode(path: Path | Content, frames: Iterator[Any], indices: NDArray[np.int64]) -> NDArray[np.uint8] | None:
    """The pixels of the wanted frames, or nothing where one of them did not come."""
    out: NDArray[np.uint8] | None = None
    number = -1
    for number, frame in enumerate(frames):
        if frame.width * frame.height * len(indices) > MAX_CLIP_PIXELS:
            raise UserError(f"{path}: frame {indices[number]} is {frame.width}x{frame.height}, larger than the file says: it is broken, copy it again")
        pixels = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
        if out is None:
            out = np.empty((len(indices), *pixels.shape), np.uint8)
        if pixels.shape != out.shape[1:]:
            raise UserError(f"{path}: frame {indices[number]} is of another size than the first; expected one size throughout")
        out[number] = pixels
    return out if number + 1 == len(indices) else None


def _seek_frames(path: Path | Content, track: _Track, indices: NDArray[np.int64]) -> Iterator[Any]:
    """The wanted frames by their times; ends early where jumping in this file does not lead to the frame asked for."""
    with _open(path) as (container, stream):
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
    with _open(path) as (container, stream):
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                yield frame
            if number == indices[-1]:
                return
