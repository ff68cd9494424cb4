"""``unipixel-jax demo``: the whole path from media to images, with the small model and on the media that ship with the package."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from unipixel_jax.core.files import writable
from unipixel_jax.infer.predictor import UniPixel
from unipixel_jax.infer.visualize import save_overlay
from unipixel_jax.processing.media import read_media
from unipixel_jax.processing.prompts import Point

ASSETS = Path(__file__).parent / "assets"
JOBS = (
    ("photo.png", "photo", "Please segment the large blue square.", ()),
    ("photo.png", "circle", "Please segment the small red circle.", ()),
    ("photo.png", "", "What is <region>?", (Point(74, 147),)),
    ("clip.gif", "clip", "Please segment the yellow circle.", ()),
)
"""Media, name of the overlay ("" for none), words, and what is pointed at."""
MAX_NEW_TOKENS = 24


def run(output_dir: Path) -> Iterator[str]:
    """Segment, describe and track; yields lines to show, the last ones the images' paths.

    Raises:
        UserError: the images cannot be written, which is found out before the work.
    """
    writable(output_dir / "demo_photo.png")
    model = UniPixel.from_pretrained(dtype="float32")
    paths = []
    for name, shown, prompt, references in JOBS:
        media = ASSETS / name
        prediction = model.segment(media, prompt, references, max_new_tokens=MAX_NEW_TOKENS)
        yield f"{name}: {prompt} -> {prediction.text}"
        if shown:
            clip = read_media(media)
            path = output_dir / f"demo_{shown}.{'png' if len(clip.frames) == 1 else 'gif'}"
            save_overlay(path, clip.frames, [item.masks for item in prediction.objects])
            paths.append(path)
    yield from (str(path) for path in paths)
