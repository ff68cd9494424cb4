"""Photos, clips and folders of frames as arrays of pixels.

F frames, H height, W width. Source: ``load_image`` and ``load_video`` in UniPixel's ``unipixel/utils/io.py``. A video's rotation is applied, as there;
a photo is turned upright too, as its EXIF tag asks for and all viewers show it, while the reference takes it as it is stored (``upright=False``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unipixel_jax.core.files import require_regular_file
from unipixel_jax.errors import TooLarge, UserError, one_line
from unipixel_jax.processing.images import MAX_CLIP_PIXELS, Content, NotAnImage, open_image, to_rgb
from unipixel_jax.processing.resize import check_ratio

FRAME_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
"""Names of the files that count as frames in a folder, in upper or lower case."""

MAX_ANIMATION_PIXELS = 4_000_000_000
"""Pixels of all frames of an animated image together, since those before a wanted one are decoded too; for example 4,000 frames of 1280x768."""

MAX_ANIMATION_FRAMES = 20_000
"""Frames of an animated image at most."""

ANIMATED = ("GIF", "WEBP", "PNG", "AVIF")
"""Pillow's names of the formats that may hold several frames."""

_GIF_EXTENSION, _GIF_IMAGE = 0x21, 0x2C
"""The bytes with which an extension and an image begin in a GIF (GIF89a specification, sections 20 and 23)."""

Media: TypeAlias = "str | Path | Content | Image.Image | NDArray[np.uint8] | Sequence[str | Path | Content | Image.Image | NDArray[np.uint8]] | Clip"
"""What can be read: a path (photo, video, folder of frames) or a file's content, an image, an array [H, W, 3] or [F, H, W, 3], or a sequence of images."""


@dataclass(frozen=True)
class Clip:
    """Frames in order; a photo is a clip of one.

    Attributes:
        frames: RGB pixels [F, H, W, 3], uint8.
        indices: each frame's number in the video or folder that was read [F], int64.
        is_image: whether it is a photo rather than a video or a folder.
        name: the name of the file or folder, without its parent and suffix.
        over_white: where a file has an alpha channel, the frames laid over white [F, H, W, 3], uint8, else None. The reference shows these to its
            language side and the plain colours to SAM.
    """

    frames: NDArray[np.uint8]
    indices: NDArray[np.int64]
    is_image: bool
    name: str
    over_white: NDArray[np.uint8] | None = None


def sample_indices(count: int, sample_frames: int | None) -> NDArray[np.int64]:
    """The numbers of the frames to take of ``count`` [F], int64: all if they are few enough, else ``sample_frames`` spread evenly from first to last.

    ``None`` takes all. Where a single frame is asked for, it is the first.
    """
    if sample_frames is None or count <= sample_frames:
        return np.arange(count)
    if sample_frames == 1:
        return np.zeros(1, np.int64)
    return np.arange(0, count, (count - 1) / (sample_frames - 1))[:sample_frames].round().astype(np.int64)


def read_media(media: Media, sample_frames: int | None = 16, *, upright: bool = True) -> Clip:
    """Read a photo, a video, a folder of frames, or take images that are in memory.

    Only the sampled frames are held. A file is recognised by its content.

    Args:
        media: a path, image, array or sequence of images; a ``Clip`` comes back as it is.
        sample_frames: frames at most; ``None`` takes all.
        upright: turn photos and frames as their EXIF tags ask for; the reference takes them as they are stored.

    Raises:
        UserError: the media is missing, not a photo or video, broken, without frames, with frames of different sizes, too thin or too large.
    """
    if sample_frames is not None and sample_frames < 1:
        raise UserError(f"sample_frames is {sample_frames}, expected at least 1")
    if isinstance(media, Clip):
        return media
    if isinstance(media, np.ndarray) and media.ndim == 4:
        return _clip(list(media), sample_frames, "frames", upright)
    if isinstance(media, np.ndarray | Image.Image):
        return _clip([media], None, "photo", upright, is_image=True)
    if isinstance(media, Content):
        return _read_file(media, sample_frames, upright)
    if not isinstance(media, str | Path):
        return _clip(list(media), sample_frames, "frames", upright)
    path = Path(media)
    if path.is_dir():
        return _clip(list_frames(path), sample_frames, path.resolve().name or "frames", upright)
    require_regular_file(path, "expected a photo, a video or a folder of frames")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty: expected a photo, a video or a folder of frames")
    return _read_file(path, sample_frames, upright)


def list_frames(folder: Path) -> list[Path]:
    """The frames in a folder in their natural order: by names, in which numbers are compared as numbers.

    Raises:
        UserError: there are none.
    """
    paths = [p for p in folder.iterdir() if p.suffix.lower() in FRAME_SUFFIXES and not p.name.startswith(".")]
    if not paths:
        raise UserError(f"{folder} has no frames: expected files ending in {', '.join(FRAME_SUFFIXES)}")
    return sorted(paths, key=natural_order)


def natural_order(path: Path) -> tuple[list[str | int], str]:
    """The key that sorts ``cam1_frame_2`` before ``cam1_frame_10``: words and numbers of the name in turn."""
    return [int(part) if number % 2 else part for number, part in enumerate(re.split(r"([0-9]+)", path.stem))], path.name


def _read_file(path: Path | Content, sample_frames: int | None, upright: bool) -> Clip:
    try:
        with open_image(path) as image:
            if image.format in ANIMATED and getattr(image, "is_animated", False):
                return _animation(image, sample_frames, path)
            return _clip([image], None, path.stem, upright, is_image=True, origin=str(path))
    except NotAnImage:
        pass
    try:
        from unipixel_jax.processing.video import read_video  # needs an extra, which photos do without
    except ImportError as error:
        raise UserError(f"{path} is not a photo, and reading videos needs PyAV: run pip install 'unipixel-jax[video]'") from error
    frames, indices = read_video(path, lambda count: sample_indices(count, sample_frames))
    return Clip(frames, indices, False, path.stem)


def _clip(sources: Sequence[Any], sample_frames: int | None, name: str, upright: bool, is_image: bool = False, origin: str = "the image") -> Clip:
    if not sources:
        raise UserError(f"{name} has no frames, expected at least one")
    indices = sample_indices(len(sources), sample_frames)
    pixels: list[NDArray[np.uint8]] = []
    white: list[NDArray[np.uint8] | None] = []
    for i in indices:
        shown, over_white = read_pixels(sources[i], upright, origin)
        if not pixels:
            _require_room(name, len(indices), *shown.shape[:2])
        elif shown.shape != pixels[0].shape:
            height, width = pixels[0].shape[:2]
            raise UserError(f"{name}: frame {i} is {shown.shape[1]}x{shown.shape[0]} pixels, the first {width}x{height}; make all the same size")
        pixels.append(shown)
        white.append(over_white)
    over = None if all(w is None for w in white) else np.stack([p if w is None else w for p, w in zip(pixels, white, strict=True)])
    return Clip(np.stack(pixels), indices, is_image, name, over)


def read_pixels(source: Any, upright: bool, origin: str = "the image") -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """The plain colours [H, W, 3] of one image, uint8, and those over white where it has an alpha channel.

    Args:
        source: a path, an image or an array [H, W, 3] of uint8.
        upright: see ``read_media``.
        origin: what messages call an image that is in memory.

    Raises:
        UserError: it is none of these, or cannot be read.
    """
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or 0 in source.shape:
            raise UserError(f"a frame is {source.dtype} {list(source.shape)}, expected uint8 [height, width, 3] in RGB")
        check_ratio(*source.shape[:2])
        return source, None
    if isinstance(source, Image.Image):
        return to_rgb(source, origin, upright)
    if not isinstance(source, str | Path | Content):
        raise UserError(f"a frame is a {type(source).__name__}, expected a path, a Pillow image or an array")
    with open_image(source) as image:
        return to_rgb(image, str(source), upright)


def iterate_animation(path: Path | Content) -> Iterator[NDArray[np.uint8]]:
    """The frames of an animated image in order, RGB [H, W, 3], uint8, one at a time.

    Raises:
        UserError: it has too many frames, or one of them is broken: those before it have been yielded.
    """
    with open_image(path) as image:
        for i in range(count_animation(image, path)):
            yield _seek(image, i, path)


def count_animation(image: Any, path: Path | Content) -> int:
    """How many frames an animated image has.

    Raises:
        UserError: more than ``MAX_ANIMATION_FRAMES``, or more than ``MAX_ANIMATION_PIXELS`` pixels in all.
    """
    if image.format == "GIF":
        with path.open() if isinstance(path, Content) else path.open("rb") as file:
            count = _count_gif_frames(file.read())
    else:
        count = image.n_frames
    if count > MAX_ANIMATION_FRAMES or count * image.width * image.height > MAX_ANIMATION_PIXELS:
        size = f"{count} frames of {image.width}x{image.height} pixels"
        raise TooLarge(f"{path} has {size}, expected at most {MAX_ANIMATION_FRAMES} and {MAX_ANIMATION_PIXELS} pixels in all: save it as a video")
    return int(image.n_frames)


def _animation(image: Any, sample_frames: int | None, path: Path | Content) -> Clip:
    indices = sample_indices(count_animation(image, path), sample_frames)
    _require_room(str(path), len(indices), image.height, image.width)
    return Clip(np.stack([_seek(image, int(i), path) for i in indices]), indices, False, path.stem)


def _seek(image: Any, i: int, path: Path | Content) -> NDArray[np.uint8]:
    try:
        image.seek(i)
    except Exception as error:  # a broken image can raise nearly anything
        raise UserError(f"{path}: frame {i} is broken or incomplete ({one_line(str(error))}): copy it again") from error
    return to_rgb(image, str(path), upright=False)[0]


def _count_gif_frames(content: bytes) -> int:
    """Images in a GIF, one more than ``MAX_ANIMATION_FRAMES`` at most. Pillow counts them too, but takes a minute for a few MB of tiny ones."""

    def after_colours(place: int, flags: int) -> int:
        return place + (3 << (flags & 7) + 1 if flags & 0x80 else 0)

    count, place = 0, after_colours(13, content[10])
    while place + 10 < len(content) and count <= MAX_ANIMATION_FRAMES:
        kind = content[place]
        if kind == _GIF_IMAGE:
            count, place = count + 1, after_colours(place + 10, content[place + 9]) + 1
        elif kind == _GIF_EXTENSION:
            place += 2
        else:
            place += 1
            continue
        while place < len(content) and content[place]:
            place += 1 + content[place]
        place += 1
    return count


def _require_room(name: str, count: int, height: int, width: int) -> None:
    if count * height * width > MAX_CLIP_PIXELS:
        raise TooLarge(f"{name}: {count} frames of {width}x{height} are more than {MAX_CLIP_PIXELS} pixels: take fewer frames, or make them smaller")
