"""Files that show the objects of a photo or a clip, written frame by frame.

O objects, F frames, H height, W width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unipixel_jax.core.files import replacing
from unipixel_jax.errors import UserError
from unipixel_jax.infer.looks import draw

if TYPE_CHECKING:
    import av

    from unipixel_jax.infer.sound import Sound
    from unipixel_jax.processing.frames import SoundSource

SIDE = 960
"""Clips are shrunk to this many pixels along their longer side for a GIF or an animated PNG, which hardly compress them."""

FRAMES = 300
"""Frames of a GIF or an animated PNG at most: all of them are held in memory, and viewers hold them decoded."""


def save_overlay(
    path: str | Path,
    frames: NDArray[np.uint8],
    masks: NDArray[np.bool_] | Sequence[NDArray[np.bool_]],
    frames_per_second: float = 10,
    first: int = 1,
    look: str = "overlay",
) -> None:
    """Draw the objects over a photo or a clip and write it.

    Args:
        path: ending in ``.png`` for one frame, in ``.gif`` or ``.mp4`` for a clip; of the look "cutout", whose background is transparent, in ``.png`` for both.
        frames: RGB [F, H, W, 3], uint8.
        masks: bool [O, F, H, W], or O arrays [F, H, W].
        frames_per_second: speed of a clip.
        first: the number of the first object.
        look: one of ``looks.LOOKS``.

    Raises:
        UserError: see ``open_overlay``; or more than one frame for a PNG that is not animated.
    """
    kind = Path(path).suffix.lower()
    if kind not in _KINDS or (kind == ".png" and len(frames) != 1 and look != "cutout"):
        raise UserError(f"{path} for {len(frames)} frames: expected a name ending in .png for one frame, in .gif or .mp4 for a clip")
    with open_overlay(path, frames_per_second, look) as overlay:
        for i, frame in enumerate(frames):
            overlay.add(frame, [m[i] for m in masks], range(first, first + len(masks)))


class Overlay(Protocol):
    """A file that takes the frames of a photo or a clip one by one, with their objects drawn over them."""

    def add(self, frame: NDArray[np.uint8], masks: NDArray[np.bool_] | Sequence[NDArray[np.bool_]], numbers: Sequence[int] | None = None) -> None:
        """Draw the objects over the next frame, as ``looks.draw`` does, and write it."""

    def close(self) -> None:
        """Write what is still to be written."""


@contextlib.contextmanager
def open_overlay(path: str | Path, frames_per_second: float = 10, look: str = "overlay", sound: SoundSource | None = None) -> Iterator[Overlay]:
    """Open an overlay file for writing frame by frame; it takes its name where the block ends well.

    Args:
        path: ending in ``.png`` for one frame, in ``.gif`` (held in memory, at most ``FRAMES``) or ``.mp4`` for a clip; of the look "cutout" in ``.png``, which
            is animated where several frames come (held in memory, at most ``FRAMES``).
        frames_per_second: speed of a clip.
        look: one of ``looks.LOOKS``.
        sound: the video whose sound an MP4 gets.

    Raises:
        UserError: another ending, a file of too many frames for its kind, PyAV is missing for an MP4, or the file cannot be written.
    """
    check_kind(path, look)
    with replacing(path) as aside:
        overlay = _KINDS[Path(path).suffix.lower()](aside, frames_per_second, look, sound)
        try:
            yield overlay
        finally:
            overlay.close()


def check_kind(path: str | Path, look: str) -> None:
    """Check that a file of this name can show objects so.

    Raises:
        UserError: it cannot.
    """
    kind = Path(path).suffix.lower()
    if kind not in _KINDS:
        raise UserError(f"{path}: expected a name ending in .png for one frame, in .gif or .mp4 for a clip")
    if look == "cutout" and kind != ".png":
        raise UserError(f"{path} for a cut-out, whose background is transparent: expected a PNG, which is animated for a clip")


class _Png:
    """A photo, or a cut-out, of which several frames become an animation."""

    def __init__(self, path: Path, rate: float, look: str, sound: SoundSource | None) -> None:
        self._path, self._rate, self._look = path, rate, look
        self._frames: list[Image.Image] = []

    def add(self, frame: NDArray[np.uint8], masks: NDArray[np.bool_] | Sequence[NDArray[np.bool_]], numbers: Sequence[int] | None = None) -> None:
        _require_few(self._frames, "an animated PNG", "take a part of it with --start and --end, or --only-sampled")
        image = Image.fromarray(draw(self._look, frame, masks, numbers))
        self._frames.append(self._small(image) if self._frames else image)

    def close(self) -> None:
        if len(self._frames) > 1:
            first, *others = self._small(self._frames[0]), *self._frames[1:]
            # every frame is put in place of the one before, whose pixels would show through it
            first.save(self._path, save_all=True, append_images=others, duration=1000 / self._rate, loop=0, disposal=1, blend=0)
        elif self._frames:
            self._frames[0].save(self._path)

    @staticmethod
    def _small(image: Image.Image) -> Image.Image:
        return image.resize(_shrunk(image.height, image.width), Image.Resampling.NEAREST)


class _Gif:
    def __init__(self, path: Path, rate: float, look: str, sound: SoundSource | None) -> None:
        self._path, self._rate, self._look = path, rate, look
        self._frames: list[Image.Image] = []

    def add(self, frame: NDArray[np.uint8], masks: NDArray[np.bool_] | Sequence[NDArray[np.bool_]], numbers: Sequence[int] | None = None) -> None:
        _require_few(self._frames, "a GIF", "choose an MP4, which is written frame by frame, with --format mp4")
        size = _shrunk(*frame.shape[:2])
        shown = np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC))
        small = [np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST)) for mask in masks]
        self._frames.append(Image.fromarray(draw(self._look, shown, small, numbers)).quantize(256, Image.Quantize.MEDIANCUT))

    def close(self) -> None:
        if self._frames:
            duration = round(1000 / self._rate)
            self._frames[0].save(self._path, save_all=True, append_images=self._frames[1:], duration=duration, loop=0)


class _Mp4:
    def __init__(self, path: Path, rate: float, look: str, sound: SoundSource | None) -> None:
        try:
            import av  # an extra, which photos do without
        except ImportError as error:
            raise UserError("writing MP4 needs PyAV: run pip install 'unipixel-jax[video]', or choose a name ending in .gif") from error
        self._container = av.open(str(path), "w", options={"movflags": "faststart"})
        self._stream: av.VideoStream | None = None
        self._rate, self._look, self._source = Fraction(rate).limit_denominator(1001), look, sound
        self._sound: Sound | None = None
        self._count = 0

    def add(self, frame: NDArray[np.uint8], masks: NDArray[np.bool_] | Sequence[NDArray[np.bool_]], numbers: Sequence[int] | None = None) -> None:
        import av

        drawn = draw(self._look, frame, masks, numbers)
        height, width = drawn.shape[:2]
        if self._stream is None:
            self._begin(height + height % 2, width + width % 2)
        assert self._stream is not None
        even = np.pad(drawn, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")))
        self._count += 1
        if self._sound is not None:
            self._sound.write_until(self._count / float(self._rate))

    def close(self) -> None:
        if self._stream is not None:
            self._container.mux(self._stream.encode())
        if self._sound is not None:
            self._sound.close()
        self._container.close()

    def _begin(self, height: int, width: int) -> None:
        """Add the tracks, all of which have to be known before the first packet is written."""
        import av

        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        self._stream = cast(av.VideoStream, self._container.add_stream(codec, rate=self._rate))
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        if self._source is not None:
            from unipixel_jax.infer.sound import Sound

            self._sound = Sound(self._source, self._container)


def _shrunk(height: int, width: int) -> tuple[int, int]:
    """Width and height with at most ``SIDE`` pixels along the longer side."""
    scale = min(1.0, SIDE / max(height, width))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _require_few(frames: Sequence[Image.Image], what: str, advice: str) -> None:
    if len(frames) >= FRAMES:
        raise UserError(f"{what} of more than {FRAMES} frames: {advice}")


_KINDS: dict[str, Callable[[Path, float, str, SoundSource | None], Overlay]] = {".png": _Png, ".gif": _Gif, ".mp4": _Mp4}
