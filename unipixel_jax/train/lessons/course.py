"""All lessons of the small model: what Qwen2.5-VL's and SAM 2.1's own training, and UniPixel's first stages, are to the large one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from flax import nnx

from unipixel_jax.config import UniPixelConfig
from unipixel_jax.core.blocks import KeyPath
from unipixel_jax.core.files import replacing
from unipixel_jax.data.roles.shapes import EVEN, Mix
from unipixel_jax.losses.mask import MaskLossWeights
from unipixel_jax.models.unipixel import UniPixelModel
from unipixel_jax.processing.tokenizer import Tokenizer
from unipixel_jax.train.config import DataConfig
from unipixel_jax.train.lessons.segmenting import draw_targets, learns, segmenting_loss
from unipixel_jax.train.lessons.sight import Sight, collate_sights, draw_sights, tables_of
from unipixel_jax.train.lessons.teaching import Lesson, Weights, give, stacked, teach, weights_of
from unipixel_jax.train.lessons.telling import POINTING, RELATIONS, DrawTold, collate_told, telling_loss
from unipixel_jax.train.trainable import trained

AGAIN = ("vision", "text", "msk", "seg")
"""Parts that learn in conversations once the language model can speak."""
SILENT = 0.25
"""Share of prompts without words, once SAM 2 has learned to find a place."""


@dataclass(frozen=True)
class Course:
    """Attributes:
    sight: of the vision tower and all that brings something into the language model's space.
    places: of SAM 2, which begins with prompts that only say a place: with words it would never look at the place.
    segmenting: of SAM 2, with words.
    telling: of the language model and seg_head.
    relations: of them, the vision tower and the memory projection: more of the questions for which two things have to be looked at.
    pointing: of the same: more of the questions that point.
    """

    sight: Lesson
    places: Lesson
    segmenting: Lesson
    telling: Lesson
    relations: Lesson
    pointing: Lesson


def take(course: Course, config: UniPixelConfig, tokenizer: Tokenizer, data: DataConfig, losses: MaskLossWeights, run_dir: Path, seed: int) -> Weights:
    """Take a course from nothing. What a lesson taught is kept in ``run_dir``, and a course that was interrupted goes on with the lesson that it was in.

    Args:
        course: how long each lesson is, and how fast.
        config: sizes of the model.
        tokenizer: for the conversations.
        data: their sizes.
        losses: weights of the parts of the mask loss.
        run_dir: for a folder for each lesson, with its numbers as those of a run.
        seed: of the weights at the start, and of the scenes.

    Returns:
        All of the model's weights, by path.
    """
    model = UniPixelModel(config, nnx.Rngs(seed))

    def sight(directory: Path) -> Weights:
        eyes, tables, parts = Sight(config, nnx.Rngs(seed)), tables_of(config), trained(("vision", "ref", "ref_enc", "msk"))
        draw = partial(draw_sights, config)
        eyes = teach(
            eyes, lambda path, value: path[0] == "tell" or parts(path, value), course.sight, directory, seed, draw, collate_sights,
            lambda eyes, batch: eyes.loss(tables, batch),
        )  # fmt: skip
        return weights_of(eyes)

    def segmenting(lesson: Lesson, silent: float, seed: int, directory: Path) -> Weights:
        return weights_of(teach(model, learns, lesson, directory, seed, partial(draw_targets, config, silent), stacked, partial(segmenting_loss, losses)))

    def telling(lesson: Lesson, mix: Mix, parts: tuple[str, ...], seed: int, directory: Path) -> Weights:
        draw = DrawTold(tokenizer, config, data, mix)
        collate = partial(collate_told, config, tokenizer.pad_id, data.ladders)
        return weights_of(teach(model, trained(parts), lesson, directory, seed, draw, collate, telling_loss))

    lessons: dict[str, Callable[[Path], Weights]] = {
        "sight": sight,
        "places": partial(segmenting, course.places, 1.0, seed),
        "segmenting": partial(segmenting, course.segmenting, SILENT, seed + 1),
        "telling": partial(telling, course.telling, EVEN, ("text", "seg"), seed),
        "relations": partial(telling, course.relations, RELATIONS, AGAIN, seed + 1),
        "pointing": partial(telling, course.pointing, POINTING, AGAIN, seed + 2),
    }
    for name, lesson in lessons.items():
        give(model, _once(run_dir / name, lesson))
    return weights_of(model)


def _once(directory: Path, lesson: Callable[[Path], Weights]) -> Weights:
    """What a lesson taught, which is not taken again if it was taken before."""
    kept = directory / "weights.npz"
    if not kept.is_file():
        named = {"/".join(map(str, path)): array for path, array in lesson(directory).items()}
        with replacing(kept) as path, path.open("wb") as file:
            np.savez(file, **named)  # type: ignore[arg-type]
    with np.load(kept) as arrays:
        return {_path(name): arrays[name] for name in arrays.files}


def _path(name: str) -> KeyPath:
    return tuple(int(part) if part.isdecimal() else part for part in name.split("/"))
