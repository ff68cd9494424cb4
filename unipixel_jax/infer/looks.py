"""The ways in which a frame's objects are shown, and the contact sheet of a clip.

O objects, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from unipixel_jax.core.files import replacing
from unipixel_jax.errors import UserError
from unipixel_jax.infer.prediction import FrameResult
from unipixel_jax.infer.visualize import draw_objects

LOOKS = ("overlay", "side-by-side", "cutout")
"""Objects drawn over the frame; the frame beside that; the objects alone, and all else transparent."""

SHEET_FRAMES, SHEET_COLUMNS = 12, 4
SHEET_SUFFIXES = (".png", ".jpg", ".jpeg")
THUMBNAIL = 360
"""The longer side of a frame on a contact sheet, in pixels."""
_GAP, _CAPTION = 12, 30
_PAPER, _INK = (250, 250, 250), (60, 60, 60)


def draw(
    look: str, frame: NDArray[np.uint8], masks: NDArray[np.bool_] | Sequence[NDArray[np.bool_]], numbers: Sequence[int] | None = None
) -> NDArray[np.uint8]:
    """Show a frame's objects.

    Args:
        look: one of ``LOOKS``.
        frame: see ``draw_objects``.
        masks: see ``draw_objects``.
        numbers: see ``draw_objects``.

    Returns:
        RGB [H, W, 3], uint8; of "side-by-side" twice as wide and a gap; of "cutout" RGBA [H, W, 4].
    """
    if look == "cutout":
        return cutout(frame, masks)
    drawn = draw_objects(frame, masks, numbers)
    if look == "overlay":
        return drawn
    gap = np.full((frame.shape[0], max(2, frame.shape[1] // 64), 3), 255, np.uint8)
    return np.concatenate([frame, gap, drawn], axis=1)


def cutout(frame: NDArray[np.uint8], masks: NDArray[np.bool_] | Sequence[NDArray[np.bool_]]) -> NDArray[np.uint8]:
    """The pixels of all objects together as RGBA [H, W, 4], uint8; the others are transparent and black, so that nothing of them is in the file."""
    kept = np.any(np.asarray(masks).reshape(-1, *frame.shape[:2]), axis=0)
    out = np.zeros((*frame.shape[:2], 4), np.uint8)
    out[kept, :3], out[kept, 3] = frame[kept], 255
    return out


class ContactSheet:
    """Some frames of a clip on one picture, spread evenly over what has come, with their objects, numbers and times. Of a long clip few frames are held."""

    def __init__(self, frames: int = SHEET_FRAMES) -> None:
        """Start empty.

        Args:
            frames: how many frames are shown at most.
        """
        self._most, self._every, self._seen = frames, 1, 0
        self._kept: list[tuple[str, Image.Image]] = []

    def add(self, result: FrameResult) -> None:
        """Take the next frame, as far as it has a place on the sheet."""
        if self._seen % self._every == 0:
            if len(self._kept) == 2 * self._most:
                self._kept, self._every = self._kept[::2], 2 * self._every
            if self._seen % self._every == 0:
                self._kept.append((_caption(result), _thumbnail(result)))
        self._seen += 1

    def image(self) -> Image.Image:
        """The sheet.

        Raises:
            UserError: no frame has come.
        """
        if not self._kept:
            raise UserError("there is no frame for a contact sheet: give a clip in which something is segmented")
        places = np.unique(np.linspace(0, len(self._kept) - 1, min(self._most, len(self._kept))).round().astype(int))
        chosen = [self._kept[place] for place in places]
        columns = min(SHEET_COLUMNS, len(chosen))
        width, height = chosen[0][1].size
        rows = -(-len(chosen) // columns)
        sheet = Image.new("RGB", (columns * (width + _GAP) + _GAP, rows * (height + _CAPTION) + _GAP), _PAPER)
        pen = ImageDraw.Draw(sheet)
        for place, (caption, picture) in enumerate(chosen):
            left, top = _GAP + place % columns * (width + _GAP), _GAP + place // columns * (height + _CAPTION)
            sheet.paste(picture, (left, top))
            pen.text((left, top + height + 4), caption, fill=_INK, font=ImageFont.load_default(14))
        return sheet

    def save(self, path: str | Path) -> None:
        """Write the sheet as a PNG or JPEG; nothing where no frame has come.

        Raises:
            UserError: it cannot be written.
        """
        if self._kept:
            with replacing(path) as aside:
                self.image().save(aside)


def check_sheet(path: Path | None) -> None:
    """Check the name of a contact sheet's file; None for none.

    Raises:
        UserError: its ending is not that of a picture.
    """
    if path is not None and path.suffix.lower() not in SHEET_SUFFIXES:
        raise UserError(f"--sheet {path}: expected a name ending in {', '.join(SHEET_SUFFIXES)}")


def _caption(result: FrameResult) -> str:
    return f"frame {result.frame}" + ("" if result.seconds is None else f"  {result.seconds:.2f} s")


def _thumbnail(result: FrameResult) -> Image.Image:
    height, width = result.pixels.shape[:2]
    scale = min(1.0, THUMBNAIL / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = np.asarray(Image.fromarray(result.pixels).resize(size, Image.Resampling.BICUBIC))
    masks = [np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST)) for mask in result.masks]
    return Image.fromarray(draw_objects(small, masks, result.objects))
