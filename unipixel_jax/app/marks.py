"""What a visitor points at: points, boxes and brush strokes on a frame, as pure functions of what was there before.

H height, W width of the upload. Clicks come in pixels of the picture as it is shown (``media.shown``), marks are kept in pixels of the upload.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from unipixel_jax.app.media import shown
from unipixel_jax.errors import UserError
from unipixel_jax.infer.visualize import colour_of, draw_badge
from unipixel_jax.processing.prompts import Box, Mask, Point

POINT, BOX, BRUSH = "Point", "Box", "Brush"
TOOLS = (POINT, BOX, BRUSH)
ON, BESIDE = "On the object", "Beside it"
_DARK, _LIGHT = (20, 20, 20), (255, 255, 255)


@dataclass(frozen=True, eq=False)
class Marked:
    """An object that a visitor pointed at.

    Attributes:
        reference: how.
        name: what the visitor calls it; "" for nothing.
    """

    reference: Point | Box | Mask
    name: str = ""


@dataclass(frozen=True, eq=False)
class Canvas:
    """An upload, and what is marked on it.

    Attributes:
        path: the upload; None before there is one.
        size: its height and width.
        frames: how many frames can be pointed at.
        frame: the one that is shown.
        marks: the objects, in the order of their coming.
        corner: the first corner of a box whose second one is to come, in pixels of the upload.
    """

    path: str | None = None
    size: tuple[int, int] = (0, 0)
    frames: int = 1
    frame: int = 0
    marks: tuple[Marked, ...] = ()
    corner: tuple[float, float] | None = None

    @property
    def references(self) -> list[Point | Box | Mask]:
        """The objects as the model takes them."""
        return [mark.reference for mark in self.marks]


def scaled(canvas: Canvas, x: float, y: float) -> tuple[float, float]:
    """A place in pixels of the picture as it is shown, in pixels of the upload."""
    scale = max(1.0, max(canvas.size) / 1024)
    return min(x * scale, canvas.size[1]), min(y * scale, canvas.size[0])


def clicked(canvas: Canvas, tool: str, x: float, y: float, name: str = "") -> Canvas:
    """The canvas after a click: with a point more, the first corner of a box, or a box more."""
    x, y = scaled(canvas, x, y)
    if tool == POINT:
        return replace(canvas, marks=(*canvas.marks, Marked(Point(x, y, canvas.frame), name)), corner=None)
    if canvas.corner is None:
        return replace(canvas, corner=(x, y))
    (x0, x1), (y0, y1) = sorted((canvas.corner[0], x)), sorted((canvas.corner[1], y))
    if x0 == x1 or y0 == y1:
        raise UserError("the two corners of the box lie on one line, so that nothing is inside: click the opposite corner")
    return replace(canvas, marks=(*canvas.marks, Marked(Box(x0, y0, x1, y1, canvas.frame), name)), corner=None)


def painted(canvas: Canvas, editor: dict[str, Any] | None, name: str = "") -> Canvas:
    """The canvas with what was painted as an object more.

    Args:
        canvas: before.
        editor: the value of Gradio's editor, whose ``layers`` are RGBA pictures.
        name: what the visitor calls it.

    Raises:
        UserError: nothing was painted.
    """
    mask = np.zeros(canvas.size, bool)
    for layer in (editor or {}).get("layers") or ():
        if layer is not None and layer.ndim == 3 and layer.shape[2] == 4:
            image = Image.fromarray(layer[..., 3] > 0)
            mask |= np.asarray(image.resize(canvas.size[::-1], Image.Resampling.NEAREST))
    if not mask.any():
        raise UserError("nothing is painted yet: draw over the object with the brush")
    return replace(canvas, marks=(*canvas.marks, Marked(Mask(mask, canvas.frame), name)), corner=None)


def undone(canvas: Canvas) -> Canvas:
    """The canvas without its last mark, or without the corner of a box that was begun."""
    return replace(canvas, corner=None) if canvas.corner is not None else replace(canvas, marks=canvas.marks[:-1])


def drawn(canvas: Canvas, pixels: NDArray[np.uint8], first: int = 0) -> NDArray[np.uint8]:
    """A frame as it is shown, with the marks on it.

    Args:
        canvas: the marks.
        pixels: the frame [H, W, 3], uint8.
        first: the number of the first object.
    """
    small = shown(pixels)
    scale = small.shape[1] / pixels.shape[1]
    image = Image.fromarray(small)
    pen = ImageDraw.Draw(image)
    radius = max(5, max(small.shape[:2]) // 90)
    for number, mark in enumerate(canvas.marks, start=first):
        if mark.reference.frame == canvas.frame:
            image = _draw(image, mark.reference, number, scale, radius)
            pen = ImageDraw.Draw(image)
    if canvas.corner is not None:
        x, y = canvas.corner[0] * scale, canvas.corner[1] * scale
        for ink, width in ((_DARK, 5), (_LIGHT, 2)):
            pen.line((x - 2 * radius, y, x + 2 * radius, y), fill=ink, width=width)
            pen.line((x, y - 2 * radius, x, y + 2 * radius), fill=ink, width=width)
    return np.asarray(image)


def _draw(image: Image.Image, reference: Point | Box | Mask, number: int, scale: float, radius: int) -> Image.Image:
    colour = colour_of(number)
    if isinstance(reference, Mask):
        stroke = Image.fromarray(reference.array).resize(image.size, Image.Resampling.NEAREST)
        return Image.composite(Image.blend(image, Image.new("RGB", image.size, colour), 0.6), image, stroke.convert("L"))
    pen = ImageDraw.Draw(image)
    if isinstance(reference, Box):
        corners = [value * scale for value in (reference.x0, reference.y0, reference.x1, reference.y1)]
        for ink, width in ((_DARK, 7), (_LIGHT, 5), (colour, 3)):
            pen.rectangle(corners, outline=ink, width=width)
        return image
    draw_badge(pen, (round(reference.x * scale), round(reference.y * scale)), radius + 4, number, 1)
    return image


def draw_point(pen: ImageDraw.ImageDraw, place: tuple[float, float], radius: float, colour: tuple[int, int, int], on: bool = True) -> None:
    """Draw a point: a disc with a white and a black ring, and a cross in it where it lies beside the object."""
    x, y = place
    for reach, ink in ((radius + 4, _DARK), (radius + 2, _LIGHT), (radius, colour)):
        pen.ellipse((x - reach, y - reach, x + reach, y + reach), fill=ink)
    if not on:
        half = radius * 0.6
        for ink, width in ((_DARK, 5), (_LIGHT, 3)):
            pen.line((x - half, y - half, x + half, y + half), fill=ink, width=width)
            pen.line((x - half, y + half, x + half, y - half), fill=ink, width=width)
