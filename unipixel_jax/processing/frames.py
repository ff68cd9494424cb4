"""All frames of a video, a folder, an animation or a camera, one at a time, so that memory does not grow with the clip's length.

H height, W width. ``media.py`` reads the few frames that the language model looks at; the frames here have the same numbers.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unipixel_jax.core.files import require_regular_file
from unipixel_jax.errors import UserError
from unipixel_jax.processing.chat import FRAMES_PER_SECOND
from unipixel_jax.processing.images import Content, NotAnImage, open_image
from unipixel_jax.processing.media import ANIMATED, Clip, Media, count_animation, iterate_animation, list_frames, read_media, read_pixels, sample_indices

log = logging.getLogger(__name__)

_SILENT_SECONDS = 10.0
"""How long a camera or a stream may give nothing."""


class Frame(NamedTuple):
    """One frame.

    Attributes:
        number: its number in the video, folder or stream, from 0.
        seconds: its time in the video, where the file tells it.
        pixels: RGB [H, W, 3], uint8.
        over_white: where the image has an alpha channel, its colours laid over white [H, W, 3], see ``Clip``.
    """

    number: int
    seconds: float | None
    pixels: NDArray[np.uint8]
    over_white: NDArray[np.uint8] | None = None


class SoundSource(NamedTuple):
    """Where a clip's sound comes from.

    Attributes:
        path: the video.
        start: the time of the clip's first frame after that of the video's, in seconds.
    """

    path: Path
    start: float = 0.0


@dataclass(frozen=True)
class Crop:
    """A rectangle of the frames, in pixels: x and y of its top left corner, width and height."""

    x: int
    y: int
    width: int
    height: int

    def of(self, frame: Frame) -> Frame:
        """The part of a frame within the rectangle.

        Raises:
            UserError: the rectangle is empty or reaches beyond the frame.
        """
        height, width = frame.pixels.shape[:2]
        if self.x < 0 or self.y < 0 or self.width < 1 or self.height < 1 or self.x + self.width > width or self.y + self.height > height:
            asked = f"{self.x},{self.y},{self.width},{self.height}"
            raise UserError(f"the crop {asked} (x, y, width, height) does not lie within the frame of {width}x{height} pixels: choose one that does")
        part = slice(self.y, self.y + self.height), slice(self.x, self.x + self.width)
        over = None if frame.over_white is None else np.ascontiguousarray(frame.over_white[part])
        return frame._replace(pixels=np.ascontiguousarray(frame.pixels[part]), over_white=over)


@dataclass(frozen=True)
class FrameSource:
    """Where frames come from.

    Attributes:
        name: the name of the file or folder, without its parent and suffix.
        count: how many frames there are; None for a stream, whose length nobody knows.
        rate: frames per second, where that is known.
        is_image: whether it is a photo.
        frames: a function that starts reading from the first frame.
        pick: a function that reads frames by their numbers [N] without decoding all others; None where there is no such way.
        crop: the part of each frame that is looked at.
        first, stop: the numbers of the first frame and of the one after the last.
        seconds_per_frame: what the language side is told of the time from one of the frames that it sees to the next; the reference tells it half a second
            of all frames that are decoded before, whatever the clip's own rate.
        video: the file of a video, whose sound goes with the frames.
    """

    name: str
    count: int | None
    rate: float | None
    is_image: bool
    frames: Callable[[], Iterator[Frame]]
    pick: Callable[[NDArray[np.int64]], list[Frame]] | None = None
    crop: Crop | None = None
    first: int = 0
    stop: int | None = None
    seconds_per_frame: float = 1 / FRAMES_PER_SECOND
    video: Path | None = None

    @property
    def sound(self) -> SoundSource | None:
        """Where the sound of these frames is; None for what is no video, or a single frame."""
        if self.video is None or not self.rate or self.is_image:
            return None
        return SoundSource(self.video, self.first / self.rate)

    def __iter__(self) -> Iterator[Frame]:
        """The frames in order. One that cannot be read ends the clip with a warning, if there was one before it.

        Raises:
            UserError: the first frame cannot be read, or the crop does not lie within it.
        """
        return self._read(logging.WARNING)

    def _read(self, level: int) -> Iterator[Frame]:
        """The frames, with the warning of a broken one logged at a level."""
        frames = self.frames()
        with closing(frames) if isinstance(frames, Generator) else nullcontext():
            for place in itertools.count():
                try:
                    frame = next(frames, None)
                except UserError as error:
                    if place == 0:
                        raise
                    log.log(level, "%s; only the first %d frames are used", error, place)
                    return
                if frame is None or (self.stop is not None and frame.number >= self.stop):
                    return
                if frame.number >= self.first:
                    yield frame if self.crop is None else self.crop.of(frame)

    def __len__(self) -> int:
        """The number of frames between ``first`` and ``stop``.

        Raises:
            UserError: it is a stream, whose length nobody knows.
        """
        if self.count is None:
            raise UserError(f"{self.name} is a stream, whose length nobody knows: give a file or a folder")
        return max(0, min(self.count, self.count if self.stop is None else self.stop) - self.first)

    def with_first_frame(self) -> tuple[FrameSource, Clip]:
        """The same source, and its first frame as a photo, which it gives again: a live stream's frames come only once.

        Raises:
            UserError: the frame cannot be read, or there is none.
        """
        frames = iter(self)
        first = next(frames, None)
        if first is None:
            raise UserError(f"{self.name} has no frames, expected at least one")
        return replace(self, frames=lambda: itertools.chain([first], frames), crop=None), _clip([first], self.name, is_image=True)

    def between(self, start: float | None, end: float | None) -> FrameSource:
        """The frames from ``start`` to before ``end``, in seconds; None for the beginning or the end.

        Raises:
            UserError: the times are in the wrong order, beyond the clip, or the clip does not tell its frame rate.
        """
        if start is None and end is None:
            return self
        if self.rate is None or self.count is None:
            asked = end if start is None else start
            raise UserError(f"{self.name} does not tell how many frames a second it has, so there is no frame at {asked:g} s: give a video file")
        seconds = self.count / self.rate
        low, high = start or 0.0, seconds if end is None else end
        # a comparison with NaN is false
        first = int(np.ceil(low * self.rate - 1e-6)) if 0 <= low < min(high, seconds) else self.count
        if first >= self.count:
            raise UserError(f"from {low:g} s to {high:g} s: expected two times in order within the {seconds:.3f} s of {self.name}")
        stop = int(np.ceil(min(high, seconds) * self.rate - 1e-6))
        return replace(self, first=first, stop=max(stop, first + 1))

    def only(self, number: int) -> FrameSource:
        """One frame as a photo.

        Raises:
            UserError: the clip has no such frame.
        """
        if not self.first <= number < self.first + len(self):
            raise UserError(f"{self.name} has no frame {number}: expected {self.first} to {self.first + len(self) - 1}")
        return replace(self, first=number, stop=number + 1, is_image=True)

    def sample(self, most: int) -> Clip:
        """The frames that the language model looks at: all, or ``most`` spread evenly from first to last, read without holding the others.

        Raises:
            UserError: a frame cannot be read, or there are none.
        """
        whole = replace(self, crop=None)
        try:
            frames = whole._picked(self.first + sample_indices(len(self), most))
        except UserError:
            frames = whole._sample_in_order(most)
        return _clip(frames if self.crop is None else [self.crop.of(frame) for frame in frames], self.name, self.is_image)

    def take(self, numbers: Sequence[int]) -> list[Frame]:
        """Frames by their numbers, in order, read without holding the others.

        Raises:
            UserError: the clip has no such frame, or it cannot be read.
        """
        last = self.first + len(self) - 1
        if wrong := [number for number in numbers if not self.first <= number <= last]:
            expected = f"{self.first} to {last}" if last > self.first else f"{last}, since it is one picture"
            raise UserError(f"{self.name} has no frame {wrong[0]}: expected {expected}")
        try:
            frames = self._picked(np.asarray(numbers, np.int64))
        except UserError:
            wanted = set(numbers)
            frames = [frame for frame in replace(self, crop=None, stop=max(numbers) + 1)._read(logging.DEBUG) if frame.number in wanted]
            if len(frames) < len(wanted):
                raise UserError(f"{self.name} is broken or incomplete (frame {max(numbers)} cannot be read): copy it again") from None
        return frames if self.crop is None else [self.crop.of(frame) for frame in frames]

    def _picked(self, numbers: NDArray[np.int64]) -> list[Frame]:
        if self.pick is None:
            raise UserError(f"{self.name} can only be read in order")
        return self.pick(numbers)

    def _sample_in_order(self, most: int) -> list[Frame]:
        """Frames spread evenly over those that can be read, which are counted first."""
        count = sum(1 for _ in self._read(logging.DEBUG))
        if not count:
            raise UserError(f"{self.name} is broken or incomplete (no frame from number {self.first} on can be read): copy it again")
        wanted = set(sample_indices(count, most).tolist())
        return [frame for place, frame in enumerate(self._read(logging.DEBUG)) if place in wanted]


def open_frames(media: Media | Iterable[Any], *, upright: bool = True) -> FrameSource:
    """Find out what is to be read, and read no more than the first frame.

    Args:
        media: a path (photo, video or folder of frames) or a file's content, a photo, frames as an array [F, H, W, 3] or a sequence, a ``Clip``, or any
            iterator of frames [H, W, 3], uint8, which is taken for a live stream and read once.
        upright: turn photos and frames as their EXIF tags ask for; the reference takes them as they are stored.

    Raises:
        UserError: see ``read_media``.
    """
    if isinstance(media, str | Path) and not Path(media).is_dir() and not _is_photo(Path(media)):
        return _open_file(Path(media))
    if isinstance(media, Content) and not _is_photo(media):
        return _open_file(media)
    if isinstance(media, str | Path) and Path(media).is_dir():
        return open_files(list_frames(Path(media)), Path(media).resolve().name or "frames", upright=upright)
    if isinstance(media, Iterator):
        return FrameSource("stream", None, None, False, lambda: _same_size("stream", (read_pixels(frame, upright) for frame in media)))
    clip = read_media(media, None, upright=upright)  # type: ignore[arg-type]
    return FrameSource(clip.name, len(clip.frames), None, clip.is_image, lambda: _frames_of(clip))


def open_files(paths: Sequence[str | Path], name: str, *, upright: bool = True) -> FrameSource:
    """Image files as the frames of a clip; each is read when its turn comes.

    Args:
        paths: the files in order; one may come several times.
        name: the clip's name.
        upright: see ``open_frames``.
    """

    def pick(numbers: NDArray[np.int64]) -> list[Frame]:
        clip = read_media([paths[number] for number in numbers], None, upright=upright)
        return [frame._replace(number=int(number)) for number, frame in zip(numbers, _frames_of(clip), strict=True)]

    return FrameSource(name, len(paths), None, False, lambda: _same_size(name, (read_pixels(path, upright) for path in paths)), pick)


def hold_frames(source: FrameSource, numbers: Sequence[int], seconds_per_frame: float | None = None) -> FrameSource:
    """Some frames of a file or folder as a clip of their own, numbered from 0. They are decoded once and held, so they should be few.

    Args:
        source: a file or folder that was opened.
        numbers: the frames' numbers in it, in order.
        seconds_per_frame: see ``FrameSource``; None for the source's.

    Raises:
        UserError: it is a stream, or has no such frame.
    """
    if source.pick is None:
        raise UserError(f"{source.name} can only be read in order: give a video file or a folder of frames")
    if wrong := [number for number in numbers if not 0 <= number < len(source)]:
        raise UserError(f"{source.name} has no frame {wrong[0]}: expected 0 to {len(source) - 1}")
    clip = _clip(source.pick(np.asarray(numbers, np.int64)), source.name, is_image=False)
    clip = replace(clip, indices=np.arange(len(numbers)))
    seconds = source.seconds_per_frame if seconds_per_frame is None else seconds_per_frame
    return FrameSource(source.name, len(numbers), None, False, lambda: _frames_of(clip), lambda places: _picked(clip, places), seconds_per_frame=seconds)


def open_address(address: str) -> FrameSource:
    """Open a camera or a stream that FFmpeg reads, such as ``rtsp://host/stream`` or ``/dev/video0``.

    Raises:
        UserError: PyAV is not installed, or the address does not answer.
    """
    try:
        import av  # an extra, which photos do without
    except ImportError as error:
        raise UserError("reading a camera needs PyAV: run pip install 'unipixel-jax[video]'") from error

    def frames() -> Iterator[Frame]:
        device = "v4l2" if address.startswith("/dev/") else None
        try:
            with av.open(address, format=device, timeout=_SILENT_SECONDS) as container:
                for number, frame in enumerate(container.decode(video=0)):
                    yield Frame(number, frame.time, np.ascontiguousarray(frame.to_ndarray(format="rgb24")))
        except av.error.ExitError as error:
            raise UserError(f"{address} was silent for {_SILENT_SECONDS:g} s, expected a video stream: check the address") from error
        except (av.error.FFmpegError, IndexError) as error:
            raise UserError(f"{address} does not give a video stream ({getattr(error, 'strerror', None) or error}): check the address") from error

    return FrameSource("stream", None, None, False, frames)


def _is_photo(path: Path | Content) -> bool:
    try:
        with open_image(path) as image:
            return not (image.format in ANIMATED and getattr(image, "is_animated", False))
    except NotAnImage:
        return False


def _open_file(path: Path | Content) -> FrameSource:
    """An animation or a video."""
    if isinstance(path, Path):
        require_regular_file(path, "expected a photo, a video or a folder of frames")
    try:
        with open_image(path) as image:
            count = count_animation(image, path)
            return FrameSource(path.stem, count, None, False, lambda: _same_size(path.stem, ((pixels, None) for pixels in iterate_animation(path))))
    except NotAnImage:
        pass
    try:
        from unipixel_jax.processing.video import iterate_video, probe_video, read_video  # needs an extra, which photos do without
    except ImportError as error:
        raise UserError(f"{path} is not a photo, and reading videos needs PyAV: run pip install 'unipixel-jax[video]'") from error
    length = probe_video(path)

    def frames() -> Iterator[Frame]:
        return (Frame(number, frame.seconds, frame.pixels) for number, frame in enumerate(iterate_video(path)))

    def pick(numbers: NDArray[np.int64]) -> list[Frame]:
        return [Frame(int(number), None, pixels) for number, pixels in zip(numbers, read_video(path, lambda _: numbers)[0], strict=True)]

    return FrameSource(path.stem, length.count, length.rate, False, frames, pick, video=path if isinstance(path, Path) else None)


def _clip(frames: Sequence[Frame], name: str, is_image: bool) -> Clip:
    """Frames that were read, at least one, as one clip."""
    over = None
    if any(frame.over_white is not None for frame in frames):
        over = np.stack([frame.pixels if frame.over_white is None else frame.over_white for frame in frames])
    return Clip(np.stack([frame.pixels for frame in frames]), np.asarray([frame.number for frame in frames], np.int64), is_image, name, over)


def _frames_of(clip: Clip) -> Iterator[Frame]:
    over = itertools.repeat(None) if clip.over_white is None else clip.over_white
    return (Frame(int(number), None, pixels, white) for number, pixels, white in zip(clip.indices, clip.frames, over, strict=False))


def _picked(clip: Clip, places: NDArray[np.int64]) -> list[Frame]:
    frames = list(_frames_of(clip))
    return [frames[place] for place in places]


def _same_size(name: str, images: Iterable[tuple[NDArray[np.uint8], NDArray[np.uint8] | None]]) -> Iterator[Frame]:
    """Frames of images, which are given by their plain colours and by those over white."""
    first: tuple[int, ...] = ()
    for number, (pixels, over_white) in enumerate(images):
        first = first or pixels.shape
        if pixels.shape != first:
            raise UserError(f"{name}: frame {number} is {pixels.shape[1]}x{pixels.shape[0]} pixels, the first {first[1]}x{first[0]}; make all the same size")
        yield Frame(number, None, pixels, over_white)
