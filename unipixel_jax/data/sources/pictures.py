"""What both kinds of own data share: a look at a picture file, and the turn that a sentence makes."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, UnidentifiedImageError

from unipixel_jax.data.annotation import MaskReader, Turn
from unipixel_jax.errors import UserError
from unipixel_jax.processing.media import FRAME_SUFFIXES

_ORIENTATION = 274
"""EXIF's tag for how a picture is to be turned before it is shown."""


def picture_size(path: Path) -> tuple[int, int]:
    """Height and width of a picture in pixels; only its head is read.

    Raises:
        UserError: not a picture, one with another ending than ``FRAME_SUFFIXES``, or one that is stored turned, so that masks drawn on it do not fit.
    """
    if path.suffix.lower() not in FRAME_SUFFIXES:
        raise UserError(f"{path} ends in {path.suffix or 'nothing'}, expected a picture ending in {', '.join(FRAME_SUFFIXES)}: convert it")
    try:
        with Image.open(path) as image:
            width, height = image.size
            turn = image.getexif().get(_ORIENTATION, 1)
    except UnidentifiedImageError as error:
        raise UserError(f"{path} is not a picture that can be read: copy or export it again") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}): copy it again") from error
    if turn not in (0, 1):
        raise UserError(f"{path} is stored turned (EXIF orientation {turn}), so masks drawn on it upright would not fit: save it upright")
    return height, width


def segmenting_turn(sentence: str, masks: MaskReader) -> Turn:
    """The turn that asks for the objects of a sentence, which is a question or names what to segment."""
    return Turn("sentence" if sentence.endswith("?") else "query", sentence, masks=masks)
