"""Image files: which formats are opened, how large an image may be, and what its pixels mean.

H height, W width. Pillow knows many formats, some of which start other programs (EPS) or open other files, so the formats that may be opened are listed.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from unipixel_jax.core.files import require_regular_file
from unipixel_jax.errors import TooLarge, UserError, one_line
from unipixel_jax.processing.resize import check_ratio

log = logging.getLogger(__name__)

PHOTOS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "HEIF", "ICO")
"""Pillow's names of the formats that photos and frames may have. Phones write JPEG (MPO among it: several in one file), HEIF and AVIF."""

LABELS = ("PNG", "GIF", "TIFF", "PPM", "WEBP")
"""Formats of label images, which keep numbers exactly. WebP is among them, since it may be lossless; BMP is not, since Pillow takes one whose two colours
are black and white for an image of 1 bit.
"""

MAX_PIXELS = 89_478_485
"""Pixels of one image or frame at most, which is Pillow's own limit."""

MAX_CLIP_PIXELS = 1 << 28
"""Pixels of all frames taken of a clip together: 800 MB, for example 32 frames of 3840x2160."""


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

    @property
    def size(self) -> int:
        """The number of its bytes."""
        return len(self.data)

    def open(self) -> BinaryIO:
        """The bytes as a file."""
        return io.BytesIO(self.data)


@dataclass(frozen=True)
class OpenedContent(Content):
    """A file that is open, and need not have a name any more, such as an upload.

    Attributes:
        file: a file of the system (one with ``fileno``), whose own position is left alone. Once it is closed, reading fails.
    """

    data: bytes = field(default=b"", repr=False)
    file: Any = None

    @property
    def size(self) -> int:
        """The number of its bytes."""
        return os.fstat(self.file.fileno()).st_size

    def open(self) -> BinaryIO:
        """Open the file for one more reader, with a position of its own."""
        return io.BufferedReader(_Reader(self.file, self.size))


class _Reader(io.RawIOBase):
    """Reads a file that others read too, at a position of its own."""

    def __init__(self, file: Any, size: int) -> None:
        self._file, self._size, self._at = file, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if at < 0:
            raise ValueError(f"the position {at} lies before the file's beginning")
        self._at = at
        return at

    def readinto(self, buffer: Any) -> int:
        count = os.preadv(self._file.fileno(), [buffer], self._at)
        self._at += count
        return count


class NotAnImage(UserError):
    """The file is of none of the formats asked for; it may still be a video."""


@contextlib.contextmanager
def open_image(source: str | Path | Content, formats: tuple[str, ...] = PHOTOS) -> Iterator[Image.Image]:
    """Open an image file; its pixels are decoded when they are first asked for, within the block.

    Args:
        source: path or content.
        formats: Pillow's names of the formats that it may have.

    Raises:
        NotAnImage: it is of none of these formats.
        UserError: it is missing, no regular file, empty, broken, or has more than ``MAX_PIXELS`` pixels; or an error of the block that is no UserError,
            which is taken for a broken file's.
    """
    if not isinstance(source, Content):
        require_regular_file(source, "expected an image file")
    _register_heif()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(source.open() if isinstance(source, Content) else source, formats=formats)
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError(f"({image.width * image.height} pixels)")
        with image:
            if image.format == "TIFF":
                with _silent_libraries():
                    image.load()
            yield image
    except UserError:
        raise
    except UnidentifiedImageError:
        raise NotAnImage(f"{source} is not an image that can be read: expected {', '.join(formats)}") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        pixels = next(iter(re.findall(r"\d+", str(error))), "too many")
        raise TooLarge(f"{source} has {pixels} pixels, expected at most {MAX_PIXELS}: make it smaller") from None
    except Exception as error:  # a broken image can raise nearly anything
        raise UserError(f"{source} is broken or incomplete ({one_line(str(error)) or type(error).__name__}): copy it again") from error


def to_rgb(image: Image.Image, name: str, upright: bool = True) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """The colours of an image, with 8 bits a channel.

    Args:
        image: of any mode. Values of 16 bits are divided by 257, floats must lie between 0 and 1 or between 0 and 255.
        name: for messages.
        upright: turn it as its EXIF data asks for, as all viewers show it; the reference leaves it as it is stored.

    Returns:
        Plain colours [H, W, 3], uint8, and those over white [H, W, 3], uint8, where the image has an alpha channel, else None.

    Raises:
        UserError: it is broken, too thin, or holds numbers that are no brightness.
    """
    check_ratio(image.height, image.width, name)
    try:
        if upright and image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            image = ImageOps.exif_transpose(image)
        eight = _eight_bits(image, name)
        plain = np.asarray(eight.convert("RGB"))
        if eight.mode != "RGBA":
            return plain, None
        white = Image.new("RGB", eight.size, (255, 255, 255))
        white.paste(eight, mask=eight.getchannel("A"))
        return plain, np.asarray(white)
    except UserError:
        raise
    except Exception as error:  # as in open_image
        raise UserError(f"{name} is broken or incomplete ({one_line(str(error)) or type(error).__name__}): copy it again") from error


def _eight_bits(image: Image.Image, name: str) -> Image.Image:
    """The image itself, or one with 8 bits a channel of an image with more, which Pillow would cut off at 255."""
    if not image.mode.startswith("I") and image.mode != "F":
        return image
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if image.mode == "F":
        if not 0 <= low <= high <= 255:  # also refuses NaN
            raise UserError(f"{name} holds floats from {low:g} to {high:g}, expected 0 to 1 or 0 to 255: save it with 8 bits a channel")
        values = values * 255 if high <= 1 else values
    else:
        if not 0 <= low <= high <= 65535:
            raise UserError(f"{name} holds numbers from {low:g} to {high:g}, expected 0 to 65535: save it with 8 bits a channel")
        if high < 4096:
            log.warning("%s has 16 bits a pixel, but its brightest is %d of 65535, so it is nearly black; save it with 8 bits if that is wrong", name, high)
        values = values / 257
    return Image.fromarray(np.rint(values).astype(np.uint8))


@contextlib.contextmanager
def _silent_libraries() -> Iterator[None]:
    """Drop what libtiff writes to the standard error of the process about a broken file, beside the error that Pillow raises."""
    with open(os.devnull, "wb") as nothing:
        kept = os.dup(2)
        os.dup2(nothing.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _register_heif() -> None:
    """Let Pillow open HEIC, the format of iPhones."""
    if "HEIF" not in Image.OPEN:
        import pi_heif

        pi_heif.register_heif_opener()
