"""``unipixel-jax demo``: the whole path from media to pictures, on what ships with the package."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from flax import nnx

from unipixel_jax.config import preset
from unipixel_jax.infer.loading import LoadedModel
from unipixel_jax.infer.predictor import UniPixel
from unipixel_jax.infer.visualize import save_overlay
from unipixel_jax.models.unipixel import UniPixelModel
from unipixel_jax.processing.media import read_media
from unipixel_jax.processing.tokenizer import Tokenizer

ASSETS = Path(__file__).parent / "assets"
NOTICE = "The weights are small and random: this shows the machinery, not a result."
JOBS = (("photo.png", "Please segment the ball <|seg|> and the house <|seg|>."), ("clip.gif", "Please track the boat <|seg|>."))
"""Media and words. The ``<|seg|>`` stand in the prompts, since random weights would hardly say one."""


def random_model(seed: int = 11) -> UniPixel:
    """A tiny UniPixel with random weights, and the tokenizer that ships with the package."""
    config = preset("tiny")
    tokenizer = Tokenizer.from_directory(ASSETS / "tokenizer")
    tokenizer.check(config)
    model = UniPixelModel(config, nnx.Rngs(seed))
    return UniPixel(LoadedModel(model, config, tokenizer, (tokenizer.eos_id,)).for_inference())


def run(output_dir: Path) -> Iterator[str]:
    """Segment the photo and track through the clip; yields lines to show, the last ones the pictures' paths."""
    yield NOTICE
    model = random_model()
    paths = []
    for name, prompt in JOBS:
        media = ASSETS / name
        prediction = model.segment(media, prompt, max_new_tokens=8)
        clip = read_media(media)
        path = output_dir / f"demo_{clip.name}.{'png' if len(clip.frames) == 1 else 'gif'}"
        save_overlay(path, clip.frames, [item.masks for item in prediction.objects])
        yield f"{name}: {prompt} -> {len(prediction.objects)} objects in {len(clip.frames)} frames"
        paths.append(path)
    yield from (str(path) for path in paths)
