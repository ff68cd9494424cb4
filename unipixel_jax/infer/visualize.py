"""Numbered, coloured objects drawn over photos and clips, and named in the answer's text.

O objects, F frames, H height, W width. The colours are Okabe and Ito's, which people with any form of colour blindness tell apart; beyond seven
objects they repeat, and the numbers go on. Outlines are light inside dark, so that one of them stands out on any image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from unipixel_jax.infer.prediction import Prediction

PALETTE: tuple[tuple[int, int, int], ...] = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167),
)  # fmt: skip
"""Colour of object 1, 2, ... as red, green and blue: in terminals, on the page, in pictures and in videos."""

_FILL = 0.45
_DARK, _LIGHT = (20, 20, 20), (255, 255, 255)


def colour_of(number: int) -> tuple[int, int, int]:
    """Red, green and blue of an object, whose numbers start at 1."""
    return PALETTE[(number - 1) % len(PALETTE)]


def draw_objects(
    frame: NDArray[np.uint8], masks: NDArray[np.bool_] | Sequence[NDArray[np.bool_]], numbers: Sequence[int] | None = None
) -> NDArray[np.uint8]:
    """A copy of a frame with every object filled, outlined and numbered.

    Args:
        frame: RGB [H, W, 3], uint8.
        masks: bool [O, H, W], or O masks [H, W]; an empty one draws nothing.
        numbers: the objects' numbers; None for 1 to O.

    Returns:
        RGB [H, W, 3], uint8.
    """
    out = frame.copy()
    line = max(1, round(max(frame.shape[:2]) / 800))
    numbered = list(zip(range(1, len(masks) + 1) if numbers is None else numbers, masks, strict=True))
    for number, mask in numbered:
        _draw_mask(out, mask, colour_of(number), line)
    image = Image.fromarray(out)
    taken: list[tuple[int, int]] = []
    for number, mask in numbered:
        if mask.any():
            radius = 9 + 3 * line
            taken.append(_badge_place(mask, taken, radius))
            draw_badge(ImageDraw.Draw(image), taken[-1], radius, number, line)
    return np.asarray(image)


def format_answer(prediction: Prediction, colour: bool = True) -> str:
    """The answer with each ``<|seg|>`` shown as its object's number, for a terminal.

    Args:
        prediction: the answer.
        colour: show the number on its object's colour, by ANSI codes, rather than in square brackets.
    """
    pieces, done = [], 0
    for number, item in zip(prediction.numbers, prediction.objects, strict=True):
        if item.span is not None:
            pieces += [prediction.text[done : item.span[0]], color_label(number, colour)]
            done = item.span[1]
    return "".join([*pieces, prediction.text[done:]])


def color_label(number: int, colour: bool = True) -> str:
    """An object's number for a terminal: on its colour, by ANSI codes, or else in square brackets."""
    if not colour:
        return f"[{number}]"
    red, green, blue = colour_of(number)
    ink = 30 if is_bright((red, green, blue)) else 97
    return f"\x1b[{ink};48;2;{red};{green};{blue}m {number} \x1b[0m"


def draw_badge(draw: ImageDraw.ImageDraw, place: tuple[int, int], radius: int, number: int, line: int) -> None:
    """Draw an object's number on a disc of its colour, with a white and a black ring.

    Args:
        draw: draws on the picture.
        place: x and y of the disc's middle.
        radius: of the disc, in pixels.
        number: the object's.
        line: the width of each ring.
    """
    x, y = place
    colour = colour_of(number)
    for reach, ink in ((radius + 2 * line, _DARK), (radius + line, _LIGHT), (radius, colour)):
        draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=ink)
    size = radius * (1.4 if number < 10 else 1.1)
    draw.text((x, y), str(number), fill=_DARK if is_bright(colour) else _LIGHT, font=ImageFont.load_default(size), anchor="mm")


def is_bright(colour: tuple[int, int, int]) -> bool:
    """Whether dark ink is read better than white on a colour."""
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 110


def _draw_mask(out: NDArray[np.uint8], mask: NDArray[np.bool_], colour: tuple[int, int, int], line: int) -> None:
    """Fill and outline one object in place, touching only the pixels around it."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return
    margin = 2 * line + 1
    top, left = max(0, int(rows[0]) - margin), max(0, int(columns[0]) - margin)
    near = (slice(top, int(rows[-1]) + margin + 1), slice(left, int(columns[-1]) + margin + 1))
    inside, pixels = mask[near], out[near]
    for channel, value in enumerate(colour):
        blended = (np.arange(256) * (1 - _FILL) + value * _FILL).astype(np.uint8)
        np.copyto(pixels[..., channel], blended[pixels[..., channel]], where=inside)
    light = _grow(inside, line)
    dark = _grow(light, line)
    core = ~_grow(~inside, 2 * line)
    pixels[inside & ~core] = colour
    pixels[light & ~inside] = _LIGHT
    pixels[dark & ~light] = _DARK


def _grow(mask: NDArray[np.bool_], by: int) -> NDArray[np.bool_]:
    """Grow a mask to every pixel within ``by`` rows and columns of it, by shifts that double the reach."""
    out, reach = mask, 0
    while reach < by:
        step = min(reach + 1, by - reach)
        for axis in (0, 1):
            wide, source = out.copy().swapaxes(0, axis), out.swapaxes(0, axis)
            wide[step:] |= source[:-step]
            wide[:-step] |= source[step:]
            out = wide.swapaxes(0, axis)
        reach += step
    return out


def _badge_place(mask: NDArray[np.bool_], taken: Sequence[tuple[int, int]], radius: int) -> tuple[int, int]:
    """Left and top of the place deepest inside a mask, found on a coarse grid, and clear of other badges if the mask has room."""
    step = max(1, max(mask.shape) // 128)
    ys, xs = (np.arange(step // 2, size, step) for size in mask.shape)
    coarse = mask[np.ix_(ys, xs)]
    if not coarse.any():
        place = np.argwhere(mask)
        y, x = place[len(place) // 2]
        return _beside((int(x), int(y)), taken, radius, mask.shape[1])
    free = coarse.copy()
    for x, y in taken:
        free &= (xs - x) ** 2 + (ys[:, None] - y) ** 2 > (2 * radius) ** 2
    layer = coarse
    depth = np.zeros(coarse.shape, np.int32)
    while layer.any():
        depth += layer
        # Pixels beyond the image count as outside of the mask, so that badges keep away from its border.
        layer = ~_grow(~np.pad(layer, 1), 1)[1:-1, 1:-1]
    best = depth * free if free.any() else depth
    row, column = np.unravel_index(int(best.argmax()), best.shape)
    return _beside((int(xs[column]), int(ys[row])), taken, radius, mask.shape[1])


def _beside(place: tuple[int, int], taken: Sequence[tuple[int, int]], radius: int, width: int) -> tuple[int, int]:
    """Step aside from badges that are already there, as long as the image goes on."""
    x, y = place
    while any((x - a) ** 2 + (y - b) ** 2 <= (2 * radius) ** 2 for a, b in taken) and x + 2 * radius + 1 < width:
        x += 2 * radius + 1
    return x, y
