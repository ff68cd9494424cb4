"""Shared by both kinds of own data: checks of image files, and the turn that a sentence makes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from unipixel_jax.data.annotation import MaskReader, Turn
from unipixel_jax.errors import UserError
from unipixel_jax.processing.images import LABELS, open_image
from unipixel_jax.processing.media import FRAME_SUFFIXES

_ORIENTATION = 274
"""EXIF's tag for how an image is to be turned before it is shown."""

_BLACK = 32
"""A colour looks black if each of its channels is below this."""


def stored_size(path: Path) -> tuple[int, int]:
    """Height and width of an image in pixels; only its header is read.

    Raises:
        UserError: not an image, one with another ending than ``FRAME_SUFFIXES``, or one that is stored turned, so that masks drawn on it do not fit.
    """
    if path.suffix.lower() not in FRAME_SUFFIXES:
        raise UserError(f"{path} ends in {path.suffix or 'nothing'}, expected an image ending in {', '.join(FRAME_SUFFIXES)}: convert it")
    with open_image(path) as image:
        width, height = image.size
        turn = image.getexif().get(_ORIENTATION, 1)
    if turn not in (0, 1):
        raise UserError(f"{path} is stored turned (EXIF orientation {turn}), so masks drawn on it upright would not fit: save it upright")
    return height, width


def require_black_zero(mask: Path) -> None:
    """Check a mask that has a palette: its pixels are numbers of colours, and the number 0, which stands for no object, must be black.

    Programs that choose a palette themselves may give white the number 0 and black the number 1.

    Raises:
        UserError: number 0 is not black, or another number in use is not brighter; or it is no image of masks.
    """
    with open_image(mask, LABELS) as image:
        if image.mode != "P":
            return
        used = np.unique(np.asarray(image))
        palette = image.getpalette("RGB") or []
    colours = np.array([*palette, *[0] * (768 - len(palette))]).reshape(256, 3)
    brightness = colours.sum(axis=1)
    wrong = [0] if colours[0].max() >= _BLACK else [n for n in used.tolist() if n and brightness[n] <= brightness[0]]
    if wrong:
        colour = tuple(colours[wrong[0]].tolist())
        raise UserError(
            f"{mask} has a palette whose number {wrong[0]} is the colour {colour}, expected black for 0, which is no object, and brighter colours for "
            "objects: save it in gray, without a palette"
        )


def join_lines(sentence: str) -> str:
    """A sentence with spaces for its line breaks, Unicode's among them, and none around it."""
    return " ".join(line.strip() for line in sentence.splitlines() if line.strip())


def segmenting_turn(sentence: str, masks: MaskReader) -> Turn:
    """The turn that asks for the objects of a sentence, which is a question or names what to segment."""
    return Turn("sentence" if sentence.endswith("?") else "query", sentence, masks=masks)
