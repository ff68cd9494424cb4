"""A picture and clips of moving shapes, and what is asked of them: the prompts of an image and the actions of sessions.

Coordinates are (x, y) in pixels of the picture or clip.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

PICTURE = (75, 52)
"""Width and height of the picture."""
CLIP = (60, 44)
"""Width and height of the clips."""


def picture(seed: int) -> np.ndarray:
    """Return an RGB picture [h, w, 3] of shapes on a mottled ground, uint8."""
    return _frame(PICTURE, 0.35, _ground(PICTURE, seed))


def clip(seed: int, frames: int) -> list[np.ndarray]:
    """Return frames [h, w, 3] uint8 in which a disc crosses to the right, a square sinks out of the frame, and a disc comes in from the left."""
    ground = _ground(CLIP, seed)
    return [_frame(CLIP, i / (frames - 1), ground) for i in range(frames)]


def _ground(size: tuple[int, int], seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(40, 200, (size[1] // 4 + 1, size[0] // 4 + 1, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size).filter(ImageFilter.GaussianBlur(2))


def _frame(size: tuple[int, int], phase: float, ground: Image.Image) -> np.ndarray:
    width, height = size
    image = ground.copy()
    pen = ImageDraw.Draw(image)
    across, down = width * (0.15 + 0.6 * phase), height * (0.3 + 0.1 * math.sin(6 * phase))
    pen.ellipse((across - 8, down - 8, across + 8, down + 8), fill=(230, 60, 40))
    top = height * (0.35 + 0.9 * phase)
    pen.rectangle((width * 0.55, top, width * 0.55 + 13, top + 11), fill=(40, 90, 220))
    left = width * (0.9 * phase - 0.35)
    pen.ellipse((left, height * 0.6, left + 12, height * 0.6 + 12), fill=(60, 200, 90))
    return np.asarray(image)


def prompts() -> list[dict[str, Any]]:
    """Return the prompts on the picture, as arguments of the image predictor; ``mask_input`` names the earlier prompt whose low-resolution mask is the input.

    A prompt without ``multimask`` is asked with it and without it.
    """
    return [
        {"points": [[26.0, 17.0]], "labels": [1]},
        {"points": [[26.5, 17.25], [47.0, 39.0]], "labels": [1, 0]},
        {"points": [[20.0, 15.0], [30.0, 20.0], [70.0, 4.0], [5.0, 45.0]], "labels": [1, 1, 0, 0]},
        {"box": [18.0, 8.0, 35.0, 25.0]},
        {"box": [40.0, 30.0, 56.0, 45.5], "points": [[47.0, 37.0], [42.0, 31.0]], "labels": [1, 0]},
        {"mask_input": 1, "multimask": False},
        {"mask_input": 1, "points": [[30.0, 12.0]], "labels": [0], "multimask": False},
        {"mask_input": 6, "box": [18.0, 8.0, 35.0, 25.0]},
        {"box": [[18.0, 8.0, 35.0, 25.0], [40.0, 30.0, 56.0, 45.5], [0.0, 30.0, 12.0, 44.0]]},
        {"points": [[[26.0, 17.0], [10.0, 10.0]], [[47.0, 37.0], [60.0, 10.0]]], "labels": [[1, 0], [1, 1]]},
    ]


def ellipse(sides: list[int]) -> np.ndarray:
    """Return a mask [h, w] of the clips' size that is true in an ellipse."""
    image = Image.new("1", CLIP)
    if sides[2] > sides[0]:
        ImageDraw.Draw(image).ellipse(sides, fill=1)
    return np.asarray(image)


def sessions() -> dict[str, dict[str, Any]]:
    """Return the sessions on clips: the number of frames, further settings of the predictor, and the actions.

    An ``add`` holds all clicks of its object on its frame; they take the place of those that were there. Objects are numbered by the user. A mask is given
    as the sides of an ellipse (left, top, right, bottom), which may be empty.
    """
    disc, square = {"points": [[9.0, 13.0]], "labels": [1]}, {"box": [33.0, 15.0, 46.5, 27.0]}
    return {
        "sam2_session": {
            "frames": 18,
            "settings": {},
            "actions": [
                {"do": "add", "frame": 0, "object": 1, **disc},
                {"do": "add", "frame": 6, "object": 1, "points": [[21.5, 17.0], [40.0, 30.0]], "labels": [1, 0]},
                {"do": "add", "frame": 0, "object": 2, **square},
                {"do": "add", "frame": 0, "object": 2, **square, "points": [[39.0, 20.0]], "labels": [1]},
                {"do": "add", "frame": 2, "object": 3, "mask": [24, 5, 36, 17]},
                {"do": "propagate"},
                {"do": "add", "frame": 9, "object": 2, "points": [[22.0, 14.0]], "labels": [0]},
                {"do": "add", "frame": 9, "object": 2, "points": [[22.0, 14.0], [40.0, 36.0]], "labels": [0, 1]},
                {"do": "add", "frame": 5, "object": 7, "points": [[4.0, 30.0]], "labels": [1]},
                {"do": "propagate", "start": 10, "backward": True},
                {"do": "add", "frame": 4, "object": 3, "points": [[20.0, 10.0], [50.0, 40.0]], "labels": [1, 0]},
                {"do": "remove", "object": 1},
                {"do": "propagate", "start": 4, "count": 7},
            ],
        },
        "sam2_session_non_overlap": {
            "frames": 6,
            "settings": {"non_overlap_masks": True},
            "actions": [
                {"do": "add", "frame": 0, "object": 5, **disc},
                {"do": "add", "frame": 0, "object": 2, **square},
                {"do": "add", "frame": 3, "object": 9, "mask": [20, 8, 40, 40]},
                {"do": "propagate"},
            ],
        },
        "sam2_session_corrections": {
            "frames": 7,
            "settings": {"add_all_frames_to_correct_as_cond": True},
            "actions": [
                {"do": "add", "frame": 1, "object": 0, **disc},
                {"do": "propagate"},
                {"do": "add", "frame": 4, "object": 0, "points": [[33.0, 13.0], [40.0, 30.0]], "labels": [1, 0]},
                {"do": "add", "frame": 5, "object": 3, "mask": [0, 0, 0, 0]},
                {"do": "propagate"},
                {"do": "add", "frame": 1, "object": 0, "points": [[9.0, 13.0], [50.0, 4.0]], "labels": [1, 0]},
                {"do": "propagate", "start": 3, "backward": True},
            ],
        },
    }
