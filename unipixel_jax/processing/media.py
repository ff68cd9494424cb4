"""Photos, clips and folders of frames as arrays of pixels.

F frames, H height, W width. Source: ``load_image`` and ``load_video`` in UniPixel's ``unipixel/utils/io.py``. Like the reference, a photo is taken as
it is stored, whatever orientation its EXIF tag asks for, while a video's rotation is applied.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from unipixel_jax.errors import UserError
from unipixel_jax.processing.resize import check_ratio

FRAME_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
"""Names of the files that count as frames in a folder, in upper or lower case."""

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_BROKEN = (OSError, SyntaxError, ValueError, EOFError)

Media: TypeAlias = "str | Path | Content | Image.Image | NDArray[np.uint8] | Sequence[str | Path | Content | Image.Image | NDArray[np.uint8]] | Clip"
"""What can be read: a path (photo, video, folder of frames) or a file's content, a picture, an array [H, W, 3] or [F, H, W, 3], or a sequence of pictures."""


@dataclass(frozen=True)
class Content:
    """A file that is in memory, as shards of training data hold it.

    Attributes:
        name: the path that it had, for names of clips and messages of errors.
        data: its bytes.
    """

    name: str
    data: bytes = field(repr=False)

    @property
    def stem(self) -> str:
        """Its name without folder and suffix."""
        return Path(self.name).stem

    def __str__(self) -> str:
        return self.name

    def open(self) -> io.BytesIO:
        """The bytes as a file."""
        return io.BytesIO(self.data)


@dataclass(frozen=True)
class Clip:
    """Frames in order; a photo is a clip of one.

    Attributes:
        frames: RGB pixels [F, H, W, 3], uint8.
        indices: each frame's number in what was read [F].
        is_image: a photo rather than a video or a folder.
        name: where it came from, without folder and suffix.
        over_white: where a file has an alpha channel, the frames laid over white [F, H, W, 3]. The reference shows these to its language side and
            the plain colours to SAM.
    """

    frames: NDArray[np.uint8]
    indices: NDArray[np.int64]
    is_image: bool
    name: str
    over_white: NDArray[np.uint8] | None = None


def sample_indices(count: int, sample_frames: int | None) -> NDArray[np.int64]:
    """The frames to take of ``count``: all if they are few enough, else ``sample_frames`` spread evenly from the first to the last.

    ``None`` takes all; of a single frame it is the first.
    """
    if sample_frames is None or count <= sample_frames:
        return np.arange(count)
    if sample_frames == 1:
        return np.zeros(1, np.int64)
    return np.arange(0, count, (count - 1) / (sample_frames - 1))[:sample_frames].round().astype(np.int64)


def read_media(media: Media, sample_frames: int | None = 16) -> Clip:
    """Read a photo, a video, a folder of frames, or take pictures that are in memory.

    Only the sampled frames are held. A file is recognised by its content.

    Args:
        media: a path, picture, array or sequence of pictures; a ``Clip`` comes back as it is.
        sample_frames: frames at most; ``None`` takes all.

    Raises:
        UserError: nothing there, not a photo or video, broken, without frames, with frames of different sizes, too thin or too large.
    """
    if sample_frames is not None and sample_frames < 1:
        raise UserError(f"sample_frames is {sample_frames}, expected at least 1")
    if isinstance(media, Clip):
        return media
    if isinstance(media, np.ndarray) and media.ndim == 4:
        return _clip(list(media), sample_frames, "frames")
    if isinstance(media, np.ndarray | Image.Image):
        return _clip([media], None, "photo", is_image=True)
    if isinstance(media, Content):
        return _read_file(media, sample_frames)
    if not isinstance(media, str | Path):
        return _clip(list(media), sample_frames, "frames")
    path = Path(media)
    if path.is_dir():
        return _clip(list_frames(path), sample_frames, path.name)
    if not path.is_file():
        raise UserError(f"{path} does not exist: expected a photo, a video or a folder of frames")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty: expected a photo, a video or a folder of frames")
    return _read_file(path, sample_frames)


def list_frames(folder: Path) -> list[Path]:
    """The frames in a folder, in the order of the first number in their names.

    Raises:
        UserError: there are none.
    """
    paths = [p for p in folder.iterdir() if p.suffix.lower() in FRAME_SUFFIXES and not p.name.startswith(".")]
    if not paths:
        raise UserError(f"{folder} has no frames: expected files ending in {', '.join(FRAME_SUFFIXES)}")

    def number(path: Path) -> tuple[float, str]:
        digits = re.search(r"\d+", path.stem)
        return (int(digits[0]) if digits else float("inf"), path.name)

    return sorted(paths, key=number)


def _read_file(path: Path | Content, sample_frames: int | None) -> Clip:
    try:
        image = _open(path)
    except UnidentifiedImageError:
        try:
            from unipixel_jax.processing.video import read_video  # needs an extra, which photos do without
        except ImportError as error:
            raise UserError(f"{path} is not a photo, and reading videos needs PyAV: run pip install 'unipixel-jax[video]'") from error
        frames, indices = read_video(path, lambda count: sample_indices(count, sample_frames))
        return Clip(frames, indices, False, path.stem)
    with image:
        if image.format in ("GIF", "WEBP") and getattr(image, "n_frames", 1) > 1:
            return _animation(image, sample_frames, path)
        return _clip([path], None, path.stem, is_image=True)


def _clip(sources: Sequence[Any], sample_frames: int | None, name: str, is_image: bool = False) -> Clip:
    if not sources:
        raise UserError(f"{name} has no frames, expected at least one")
    indices = sample_indices(len(sources), sample_frames)
    pixels: list[NDArray[np.uint8]] = []
    white: list[NDArray[np.uint8] | None] = []
    for i in indices:
        shown, over_white = _pixels(sources[i])
        if pixels and shown.shape != pixels[0].shape:
            height, width = pixels[0].shape[:2]
            raise UserError(f"{name}: frame {i} is {shown.shape[1]}x{shown.shape[0]} pixels, the first {width}x{height}; make all the same size")
        pixels.append(shown)
        white.append(over_white)
    over = None if all(w is None for w in white) else np.stack([p if w is None else w for p, w in zip(pixels, white, strict=True)])
    return Clip(np.stack(pixels), indices, is_image, name, over)


def _pixels(source: str | Path | Content | Image.Image | NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Plain colours [H, W, 3] of one picture, and those over white where it has an alpha channel."""
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or 0 in source.shape:
            raise UserError(f"a frame is {source.dtype} {list(source.shape)}, expected uint8 [height, width, 3] in RGB")
        check_ratio(*source.shape[:2])
        return source, None
    if isinstance(source, Image.Image):
        return _convert(source, "the picture")
    if not isinstance(source, str | Path | Content):
        raise UserError(f"a frame is a {type(source).__name__}, expected a path, a Pillow image or an array")
    try:
        with _open(Path(source) if isinstance(source, str) else source) as image:
            return _convert(image, str(source))
    except UnidentifiedImageError as error:
        raise UserError(f"{source} is not a picture that can be read: expected {', '.join(_FORMATS)}") from error


def _open(path: Path | Content) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            return Image.open(path.open() if isinstance(path, Content) else path, formats=_FORMATS)
        except UnidentifiedImageError:
            raise
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            pixels = re.findall(r"\d+", str(error))[0]
            raise UserError(f"{path} has {pixels} pixels, expected at most {Image.MAX_IMAGE_PIXELS}: make it smaller") from error
        except FileNotFoundError as error:
            raise UserError(f"{path} does not exist") from error
        except _BROKEN as error:
            raise UserError(f"{path} cannot be read ({error})") from error


def _convert(image: Image.Image, name: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    check_ratio(image.height, image.width, name)
    try:
        plain = np.asarray(image.convert("RGB"))
    except _BROKEN as error:
        raise UserError(f"{name} is broken or incomplete ({error}): copy it again") from error
    if image.mode != "RGBA":
        return plain, None
    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(image, mask=image.getchannel("A"))
    return plain, np.asarray(white)


def _animation(image: Image.Image, sample_frames: int | None, path: Path | Content) -> Clip:
    frames = []
    indices = sample_indices(image.n_frames, sample_frames)  # type: ignore[attr-defined]
    for i in indices:
        try:
            image.seek(int(i))
        except _BROKEN as error:
            raise UserError(f"{path}: frame {i} is broken or incomplete ({error}): copy it again") from error
        frames.append(_convert(image, str(path))[0])
    return Clip(np.stack(frames), indices, False, path.stem)
