"""Images and clips of coloured shapes, with the exact mask of every shape.

O objects (from back to front), F frames, S side of the square image in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

SIDE = 128
"""Side of every image in pixels, S."""
SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {"red": (220, 40, 40), "green": (40, 170, 60), "blue": (50, 80, 220), "yellow": (240, 210, 50), "purple": (150, 50, 170), "white": (245, 245, 245)}
RADII = {"small": (10.0, 13.0), "large": (19.0, 25.0)}
"""Names of sizes, and the radii in pixels that they stand for."""
VISIBLE = 0.6
"""Every object shows at least this share of itself in every frame."""
OVERLAP = 0.12
"""An object that is meant to lie behind another is covered by at least this share of itself."""
SPEED = 7.0
"""Pixels that an object moves from frame to frame at most, along each axis."""


@dataclass(frozen=True)
class Thing:
    """One object of a scene.

    Attributes:
        size: a key of ``RADII``.
        colour: a key of ``COLOURS``.
        shape: one of ``SHAPES``.
        radius: in pixels.
        angle: by which it is turned, in radians.
        centres: x and y in every frame [F, 2], in pixels.
    """

    size: str
    colour: str
    shape: str
    radius: float
    angle: float
    centres: NDArray[np.float64]


@dataclass(frozen=True)
class Scene:
    """An image or clip, and what it shows.

    Attributes:
        things: from back to front.
        frames: uint8 [F, S, S, 3].
        masks: the visible part of every thing: bool [O, F, S, S].
        covered: share of a thing's first frame that another hides: [O, O], row hidden by column.
    """

    things: tuple[Thing, ...]
    frames: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    covered: NDArray[np.float64]

    @cached_property
    def centres(self) -> NDArray[np.float64]:
        """Centres in the first frame [O, 2]."""
        return np.stack([thing.centres[0] for thing in self.things])

    def behind(self, front: int) -> list[int]:
        """The things that lie partly behind one, in the first frame."""
        return [i for i in range(front) if self.covered[i, front] >= OVERLAP]


def draw_scene(rng: np.random.Generator, frames: int = 1) -> Scene:
    """A random scene of three to five things of which no two look alike; drawn again until each is visible enough in every frame."""
    while True:
        things = _things(rng, int(rng.integers(3, 6)), frames)
        cover = np.stack([np.stack([_coverage(thing, f) for f in range(frames)]) for thing in things])
        solid = cover > 0.5
        masks = solid.copy()
        for front in range(1, len(things)):
            masks[:front] &= ~solid[front]
        if np.all(masks.sum(axis=(2, 3)) >= VISIBLE * solid.sum(axis=(2, 3))):
            break
    area = solid[:, 0].sum(axis=(1, 2))
    hidden = np.einsum("ohw,phw->op", solid[:, 0].astype(np.float32), solid[:, 0].astype(np.float32)) / area[:, None]
    covered = np.triu(hidden.astype(np.float64), 1)
    pixels = np.repeat(_background(rng)[None], frames, axis=0)
    for thing, part in zip(things, cover, strict=True):
        tint = np.asarray(COLOURS[thing.colour]) * rng.uniform(0.85, 1.0) + rng.uniform(-8, 8, 3)
        pixels += part[..., None] * (np.clip(tint, 0, 255) - pixels)
    return Scene(tuple(things), np.clip(pixels + rng.normal(0, 3, pixels.shape), 0, 255).astype(np.uint8), masks, covered)


def _things(rng: np.random.Generator, count: int, frames: int) -> list[Thing]:
    appearances: set[tuple[str, str, str]] = set()
    while len(appearances) < count:
        appearances.add((str(rng.choice(tuple(RADII))), str(rng.choice(tuple(COLOURS))), str(rng.choice(SHAPES))))
    things: list[Thing] = []
    for number in rng.permutation(count):
        size, colour, shape = sorted(appearances)[number]
        radius, angle = float(rng.uniform(*RADII[size])), float(rng.uniform(-0.25, 0.25))
        start = rng.uniform(radius, SIDE - radius, 2)
        if things and rng.random() < 0.3:  # put it partly in front of the one before
            turn, reach = rng.uniform(0, 2 * np.pi), rng.uniform(0.7, 1.0) * (radius + things[-1].radius)
            start = things[-1].centres[0] + reach * np.array([np.cos(turn), np.sin(turn)])
        path = start + np.arange(frames)[:, None] * rng.uniform(-SPEED, SPEED, 2)
        things.append(Thing(size, colour, shape, radius, angle, _reflect(path, radius)))
    return things


def _reflect(path: NDArray[np.float64], margin: float) -> NDArray[np.float64]:
    """Turn a path back at the image's edges."""
    room = SIDE - 2 * margin
    folded = np.mod(path - margin, 2 * room)
    return margin + np.where(folded > room, 2 * room - folded, folded)


def _coverage(thing: Thing, frame: int) -> NDArray[np.float64]:
    """How much of each pixel a thing covers, 0 to 1 [S, S], from the signed distance to its edge."""
    x, y = np.arange(SIDE) + 0.5 - thing.centres[frame, 0], np.arange(SIDE)[:, None] + 0.5 - thing.centres[frame, 1]
    if thing.shape == "circle":
        return np.clip(thing.radius - np.hypot(x, y) + 0.5, 0, 1)
    cos, sin = np.cos(thing.angle), np.sin(thing.angle)
    u, v = cos * x + sin * y, cos * y - sin * x
    if thing.shape == "square":
        distance = 0.85 * thing.radius - np.maximum(np.abs(u), np.abs(v))
    elif thing.shape == "triangle":
        distance = np.minimum(0.55 * thing.radius - v, 0.55 * thing.radius + 0.5 * v - np.sqrt(0.75) * np.abs(u))
    else:
        arm, half = 0.95 * thing.radius, 0.32 * thing.radius
        bars = (np.maximum(np.abs(u) - arm, np.abs(v) - half), np.maximum(np.abs(v) - arm, np.abs(u) - half))
        distance = -np.minimum(*bars)
    return np.clip(distance + 0.5, 0, 1)


def _background(rng: np.random.Generator) -> NDArray[np.float64]:
    """Dusk [S, S, 3], darker than every colour: a little warmer to the right and bluer to the bottom, so that a patch tells where it lies."""
    ramp = np.linspace(-0.5, 0.5, SIDE)
    right, down = ramp * rng.uniform(27, 33), ramp[:, None] * rng.uniform(27, 33)
    base = rng.uniform(20, 35)
    return np.stack([base + right + 0 * down, np.full((SIDE, SIDE), base), base + down + 0 * right], axis=-1)
