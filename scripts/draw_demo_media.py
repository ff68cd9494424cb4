#!/usr/bin/env python3
"""Draw the photo and the clip that ship with the package for `unipixel-jax demo`; the same bytes every time with the same Pillow.

python scripts/draw_demo_media.py
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

ASSETS = Path(__file__).resolve().parent.parent / "unipixel_jax" / "assets"
PHOTO_SIZE, CLIP_SIZE = (640, 427), (320, 214)
CLIP_FRAMES, FRAME_MILLISECONDS = 10, 120
SCALE = 3
"""Pictures are drawn this many times larger and shrunk, which smooths the edges."""

Colour = tuple[int, int, int]


class Canvas:
    """A picture on which everything is placed in fractions of its width and height."""

    def __init__(self, size: tuple[int, int], top: Colour, bottom: Colour) -> None:
        self.size = size
        self.width, self.height = size[0] * SCALE, size[1] * SCALE
        shade = np.linspace(0, 1, self.height)[:, None, None]
        rows = np.array(top) * (1 - shade) + np.array(bottom) * shade
        self.image = Image.fromarray(np.broadcast_to(rows, (self.height, self.width, 3)).round().astype(np.uint8))
        self.pen = ImageDraw.Draw(self.image)

    def disc(self, x: float, y: float, radius: float, colour: Colour, squash: float = 1.0) -> None:
        """A disc, its radius a fraction of the width; `squash` scales its height."""
        cx, cy, r = x * self.width, y * self.height, radius * self.width
        self.pen.ellipse((cx - r, cy - r * squash, cx + r, cy + r * squash), fill=colour)

    def shape(self, points: list[tuple[float, float]], colour: Colour) -> None:
        """A polygon."""
        self.pen.polygon([(x * self.width, y * self.height) for x, y in points], fill=colour)

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        """A rectangle."""
        self.shape([(left, top), (right, top), (right, bottom), (left, bottom)], colour)

    def ridge(self, base: float, height: float, waves: float, phase: float, colour: Colour) -> None:
        """Hills or water: everything below a wavy line around `base`."""
        xs = np.linspace(0, 1, 200)
        ys = base - height * (np.sin(2 * math.pi * (waves * xs + phase)) + 0.4 * np.sin(2 * math.pi * (2.3 * waves * xs + 2 * phase)))
        self.shape([(0.0, 1.0), *zip(xs.tolist(), ys.tolist(), strict=True), (1.0, 1.0)], colour)

    def cloud(self, x: float, y: float, size: float) -> None:
        """Three overlapping discs on a flat foot."""
        for dx, dy, r in ((-0.9, 0.25, 0.6), (0.0, 0.0, 0.9), (1.0, 0.3, 0.55)):
            self.disc(x + dx * size, y + dy * size, r * size, (250, 251, 253), squash=0.7)

    def small(self) -> Image.Image:
        """The picture at its final size."""
        return self.image.resize(self.size, Image.Resampling.BOX)


def draw_photo() -> Image.Image:
    """A meadow with a house, two trees, a red and white ball and a sun."""
    c = Canvas(PHOTO_SIZE, (92, 158, 222), (214, 234, 246))
    c.disc(0.86, 0.15, 0.055, (255, 221, 110))
    c.cloud(0.22, 0.14, 0.07)
    c.cloud(0.58, 0.22, 0.05)
    c.ridge(0.56, 0.05, 1.3, 0.1, (122, 160, 148))
    c.ridge(0.64, 0.025, 1.0, 0.55, (112, 172, 92))
    c.ridge(0.74, 0.015, 0.8, 0.2, (94, 158, 74))
    c.box(0.12, 0.45, 0.36, 0.72, (238, 218, 186))
    c.shape([(0.09, 0.46), (0.24, 0.27), (0.39, 0.46)], (168, 72, 56))
    c.box(0.315, 0.29, 0.345, 0.42, (150, 62, 50))
    c.box(0.21, 0.56, 0.27, 0.72, (112, 76, 52))
    for left in (0.145, 0.295):
        c.box(left, 0.53, left + 0.045, 0.6, (126, 176, 206))
    for x, y, r in ((0.5, 0.5, 0.055), (0.93, 0.53, 0.07)):
        c.box(x - 0.01, y, x + 0.01, y + 3.4 * r, (110, 80, 58))
        c.disc(x, y, r, (58, 124, 66))
        c.disc(x - 0.3 * r, y - 0.35 * r, 0.6 * r, (74, 142, 78))
    c.disc(0.67, 0.885, 0.085, (74, 132, 60), squash=0.25)
    c.disc(0.67, 0.78, 0.075, (208, 52, 48))
    c.disc(0.67, 0.78, 0.075, (244, 240, 234), squash=0.34)
    c.disc(0.67, 0.78, 0.075, (208, 52, 48), squash=0.12)
    c.disc(0.645, 0.715, 0.014, (250, 200, 194))
    return c.small()


def draw_frame(time: float) -> Image.Image:
    """A boat that sails from left to right under a passing cloud; `time` runs from 0 to 1."""
    c = Canvas(CLIP_SIZE, (118, 176, 226), (232, 240, 240))
    c.disc(0.8, 0.2, 0.06, (255, 224, 128))
    c.cloud(0.75 - 0.35 * time, 0.2, 0.07)
    c.ridge(0.52, 0.06, 1.1, 0.3, (118, 150, 138))
    c.ridge(0.62, 0.006, 3.0, 0.35 * time, (62, 124, 172))
    x, y = 0.2 + 0.55 * time, 0.66 + 0.012 * math.sin(4 * math.pi * time)
    c.box(x - 0.006, y - 0.34, x + 0.006, y, (96, 66, 46))
    c.shape([(x + 0.015, y - 0.33), (x + 0.015, y - 0.05), (x + 0.13, y - 0.05)], (250, 248, 240))
    c.shape([(x - 0.015, y - 0.28), (x - 0.015, y - 0.05), (x - 0.09, y - 0.05)], (214, 68, 58))
    c.shape([(x - 0.13, y - 0.02), (x + 0.15, y - 0.02), (x + 0.1, y + 0.09), (x - 0.09, y + 0.09)], (134, 76, 48))
    c.ridge(0.76, 0.008, 2.2, -0.5 * time, (48, 104, 152))
    return c.small()


def main() -> None:
    """Write photo.png and clip.gif into the package."""
    draw_photo().quantize(160, dither=Image.Dither.NONE).save(ASSETS / "photo.png", optimize=True)
    frames = [draw_frame(i / (CLIP_FRAMES - 1)) for i in range(CLIP_FRAMES)]
    # one palette for all frames, so that still parts stay still
    sheet = Image.fromarray(np.concatenate([np.asarray(frame) for frame in frames]))
    palette = sheet.quantize(96, dither=Image.Dither.NONE)
    reduced = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    reduced[0].save(ASSETS / "clip.gif", save_all=True, append_images=reduced[1:], duration=FRAME_MILLISECONDS, loop=0, optimize=True)
    for name in ("photo.png", "clip.gif"):
        print(f"{ASSETS / name}: {(ASSETS / name).stat().st_size} bytes")


if __name__ == "__main__":
    main()
