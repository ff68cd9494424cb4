"""``unipixel-jax demo``: the embedded model segments, describes and tracks objects of the media that ship with the package."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from unipixel_jax.core.files import writable
from unipixel_jax.infer.overlays import save_overlay
from unipixel_jax.infer.predictor import UniPixel
from unipixel_jax.processing.media import read_media
from unipixel_jax.processing.prompts import Point

ASSETS = Path(__file__).parent / "assets"
JOBS = (
    ("photo.png", "photo", "Please segment the large blue square.", ()),
    ("photo.png", "circle", "Please segment the small red circle.", ()),
    ("photo.png", "", "What is <region>?", (Point(74, 147),)),
    ("clip.gif", "clip", "Please segment the yellow circle.", ()),
)
"""Each job's media file, name of the overlay ("" for none), prompt, and the points that ``<region>`` stands for."""
MAX_NEW_TOKENS = 24


def run(output_dir: Path) -> Iterator[str]:
    """Run all jobs.

    Args:
        output_dir: the folder that the overlays are written to.

    Yields:
        Lines to show: each job's answer, and at the end the paths of the overlays.

    Raises:
        UserError: the overlays cannot be written; this is checked before the work begins.
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
