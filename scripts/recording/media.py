"""A photo and clips that are drawn from a seed. They show plain shapes on a shaded ground, so that prompts about them make sense to a trained model too."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

from PIL import Image, ImageDraw

Colour = tuple[int, int, int]


def draw(folder: Path, photo_size: tuple[int, int], clips: Mapping[str, tuple[tuple[int, int], int]], seed: int) -> None:
    """Write ``photo.png``, and of each clip the frames ``NAME/001.png`` onwards.

    Args:
        folder: where to write.
        photo_size: (width, height) of the photo in pixels.
        clips: size of the frames and their number, by name. A clip that is appended leaves those before it as they are.
        seed: what the colours and positions are drawn from.
    """
    rng = random.Random(seed)
    folder.mkdir(parents=True)
    _scene(photo_size, rng.random(), _colour(rng)).save(folder / "photo.png")
    for name, (size, length) in clips.items():
        (folder / name).mkdir()
        start, ground = 0.5 * rng.random(), _colour(rng)
        for i in range(length):
            _scene(size, start + 0.4 * i / length, ground).save(folder / name / f"{i + 1:03}.png")


def _colour(rng: random.Random) -> Colour:
    return rng.randrange(60, 200), rng.randrange(60, 200), rng.randrange(60, 200)


def _scene(size: tuple[int, int], phase: float, ground: Colour) -> Image.Image:
    """Draw a blue square in front of a red circle and a green triangle; ``phase`` (0 to 1) moves the square to the right."""
    width, height = size
    side = min(size) // 3
    image = Image.new("RGB", size, ground)
    pen = ImageDraw.Draw(image)
    for y in range(0, height, 4):
        shade = y / height
        pen.rectangle((0, y, width, y + 3), fill=(int(ground[0] * (1 - shade / 2)), int(ground[1] * (1 - shade / 3)), ground[2]))
    pen.ellipse((width // 8, height // 6, width // 8 + side, height // 6 + side), fill=(214, 40, 40))
    top, foot = height // 8, height // 8 + side
    pen.polygon(((width * 3 // 4, top), (width * 3 // 4 - side // 2, foot), (width * 3 // 4 + side // 3, foot)), fill=(40, 170, 70))
    left = int(phase * (width - side))
    pen.rectangle((left, height // 2, left + side, height // 2 + side), fill=(35, 80, 210))
    return image
