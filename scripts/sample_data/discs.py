"""Small clips of coloured discs that move to the right, and writers of the files in which data sets keep clips and masks."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

COLOURS = ("red", "green", "blue", "yellow", "white", "black")
_RGB = ((220, 40, 40), (40, 180, 60), (50, 80, 230), (235, 220, 60), (250, 250, 250), (10, 10, 10))


def draw_discs(frames: int, objects: int, size: tuple[int, int] = (96, 64), start: int = 0) -> tuple[list[Image.Image], NDArray[np.bool_]]:
    """Draw a clip of discs one above the other on gray.

    Args:
        frames: number of frames F.
        objects: number of discs O, at most 6; disc i has the colour ``COLOURS[i]``.
        size: width and height in pixels.
        start: how many frames the discs have moved before the first frame.

    Returns:
        The frames, and the discs' masks [O, F, H, W] bool.
    """
    width, height = size
    y, x = np.mgrid[:height, :width]
    radius = max(3, height // (2 * objects + 2))
    masks = np.zeros((objects, frames, height, width), bool)
    pixels = np.full((frames, height, width, 3), 128, np.uint8)
    for o, f in np.ndindex(objects, frames):
        centre = radius + 3 * (f + start + o) % (width - 2 * radius), (2 * o + 1) * height // (2 * objects)
        masks[o, f] = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 <= radius**2
        pixels[f][masks[o, f]] = _RGB[o]
    return [Image.fromarray(p) for p in pixels], masks


def run_length(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Return COCO's compressed run lengths of a mask [H, W] bool, as a JSON value."""
    encoded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")}


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, and make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_photo(path: Path, image: Image.Image) -> None:
    """Write an image in the format of its name's suffix, and make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def write_folder(folder: Path, frames: list[Image.Image], name: str = "{:05d}.jpg") -> None:
    """Write frames as numbered images."""
    for number, frame in enumerate(frames):
        write_photo(folder / name.format(number), frame)


def write_video(path: Path, frames: list[Image.Image], rate: int = 10) -> None:
    """Write frames as an H.264 video of ``rate`` frames per second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(rate))
        stream.width, stream.height, stream.pix_fmt = *frames[0].size, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode(None))
