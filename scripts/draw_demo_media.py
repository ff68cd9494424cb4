#!/usr/bin/env python3
"""Draw the photo and the clip that ship with the package for `unipixel-jax demo`: scenes that no training saw, enlarged.

python scripts/draw_demo_media.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from unipixel_jax.data.synthetic.language import full_name
from unipixel_jax.data.synthetic.scene import SIDE, Scene, draw_scene

ASSETS = Path(__file__).resolve().parent.parent / "unipixel_jax" / "assets"
SEED = 31_000_000
PHOTO_SIDE, CLIP_SIDE = 320, 256
CLIP_FRAMES, FRAME_MILLISECONDS = 8, 160
PHOTO = {"large blue square", "small red circle", "large green triangle"}
CLIP = {"small yellow circle", "large purple square"}
"""The things that photo and clip must show."""


def first_scene(wanted: set[str], frames: int) -> Scene:
    """Return the first scene that shows all of these things, among others."""
    for number in range(1_000_000):
        scene = draw_scene(np.random.default_rng([SEED, number]), frames)
        if wanted <= {full_name(scene, i) for i in range(len(scene.things))}:
            return scene
    raise SystemExit(f"no scene shows {wanted}")


def enlarged(frame: np.ndarray, side: int) -> Image.Image:
    """Return a frame [H, W, 3] uint8 as an image of `side` x `side` pixels."""
    return Image.fromarray(frame).resize((side, side), Image.Resampling.BICUBIC)


def main() -> None:
    """Write the photo and the clip, and print what they show."""
    photo = first_scene(PHOTO, 1)
    enlarged(photo.frames[0], PHOTO_SIDE).save(ASSETS / "photo.png", optimize=True)
    clip = first_scene(CLIP, CLIP_FRAMES)
    images = [enlarged(frame, CLIP_SIDE).quantize(64, Image.Quantize.MEDIANCUT) for frame in clip.frames]
    images[0].save(ASSETS / "clip.gif", save_all=True, append_images=images[1:], duration=FRAME_MILLISECONDS, loop=0)
    for name, scene, side in (("photo", photo, PHOTO_SIDE), ("clip", clip, CLIP_SIDE)):
        print(name, [(full_name(scene, i), (scene.centres[i] * side / SIDE).round().tolist()) for i in range(len(scene.things))])


if __name__ == "__main__":
    main()
