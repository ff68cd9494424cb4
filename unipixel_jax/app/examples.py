"""Drawn scenes with words that the small model knows, written as photos and clips when the page opens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unipixel_jax.data.synthetic.scene import Scene, draw_scene
from unipixel_jax.infer.overlays import open_overlay

SIDE = 384
"""The side of an example in pixels."""
PHOTOS, CLIPS = (3, 11, 20), (2, 5)
"""The seeds of the scenes."""
FRAMES, RATE = 24, 8


@dataclass(frozen=True)
class Example:
    """A photo or a clip, and what can be asked about it.

    Attributes:
        path: the file.
        thumbnail: a small picture of it.
        names: of its objects, from back to front, such as "large blue square".
        places: a pixel of each object's first frame, x before y, at which nothing lies in front of it.
    """

    path: Path
    thumbnail: Path
    names: tuple[str, ...]
    places: tuple[tuple[int, int], ...]

    @property
    def prompt(self) -> str:
        """Words for the object in front."""
        return f"Please segment the {self.names[-1]}."


def draw_examples(folder: Path, frames: int = FRAMES) -> tuple[list[Example], list[Example]]:
    """Write the examples, clips of so many frames, and return the photos and the clips."""
    folder.mkdir(parents=True, exist_ok=True)
    photos = []
    for number, seed in enumerate(PHOTOS, start=1):
        scene = draw_scene(np.random.default_rng(seed))
        path = folder / f"drawn-{number}.png"
        _large(scene.frames[0]).save(path)
        photos.append(_example(path, scene))
    clips = []
    for number, seed in enumerate(CLIPS, start=1):
        scene = draw_scene(np.random.default_rng(seed), frames)
        path = folder / f"drawn-clip-{number}.mp4"
        with open_overlay(path, RATE) as film:
            for frame in scene.frames:
                film.add(np.asarray(_large(frame)), [])
        clips.append(_example(path, scene))
    return photos, clips


def _large(frame: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(frame).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def _example(path: Path, scene: Scene) -> Example:
    names = tuple(f"{thing.size} {thing.colour} {thing.shape}" for thing in scene.things)
    places = []
    for mask in scene.masks[:, 0]:
        ys, xs = np.nonzero(mask)
        middle = np.argmin((ys - ys.mean()) ** 2 + (xs - xs.mean()) ** 2)
        scale = SIDE / mask.shape[0]
        places.append((int((xs[middle] + 0.5) * scale), int((ys[middle] + 0.5) * scale)))
    thumbnail = path.with_name(f"{path.stem}-small.png")
    _large(scene.frames[0]).resize((96, 96), Image.Resampling.BICUBIC).save(thumbnail)
    return Example(path, thumbnail, names, tuple(places))
