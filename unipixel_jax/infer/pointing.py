"""Points, boxes and masks as a command's arguments give them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from unipixel_jax.errors import UserError
from unipixel_jax.processing.mask_files import read_masks
from unipixel_jax.processing.prompts import Box, Mask, Point


def numbers(text: str) -> list[float]:
    """Finite numbers separated by commas; an empty list where the text is something else."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        return []
    return values if all(map(math.isfinite, values)) else []


def check_references(given: Sequence[tuple[int, str]]) -> None:
    """Check references before the media is read.

    Args:
        given: how many coordinates the kind has (2 for a point, 4 for a box, 0 for a mask's file), and the text.

    Raises:
        UserError: there are none, a text is not of its kind, or masks are mixed with points or boxes.
    """
    if not given:
        raise UserError("nothing is pointed at: give --point, --box or --mask for what the question is about, or use `unipixel-jax segment`")
    if len({count == 0 for count, _ in given}) > 1:
        raise UserError("--mask is given with --point or --box: give masks only, or points and boxes only")
    for count, text in given:
        if count:
            _split(text, count)


def read_references(given: Sequence[tuple[int, str]], size: tuple[int, int]) -> list[Point | Box | Mask]:
    """The references in their order.

    Args:
        given: see ``check_references``.
        size: height and width of the media.

    Raises:
        UserError: a text is not of its kind, or a mask's file cannot be read or is of another size.
    """
    references: list[Point | Box | Mask] = []
    for count, text in given:
        if not count:
            path, frame = _mask_file(text)
            references += [Mask(mask, frame) for mask in read_masks(path, size)]
            continue
        (x, y, *corner), frame = _split(text, count)
        references.append(Box(x, y, corner[0], corner[1], frame) if corner else Point(x, y, frame))
    return references


def _split(text: str, count: int) -> tuple[list[float], int]:
    values = numbers(text)
    frame = values[count] if len(values) > count else 0.0
    if len(values) not in (count, count + 1) or not frame.is_integer():
        raise UserError(f"{text!r} is not a reference: expected {count} numbers separated by commas, and the whole number of a frame if you like")
    return values[:count], int(frame)


def _mask_file(text: str) -> tuple[Path, int]:
    """The path and the frame; a comma may belong to the file's name."""
    name, comma, frame = text.rpartition(",")
    return (Path(name), int(frame)) if comma and frame.isdecimal() and not Path(text).exists() else (Path(text), 0)
