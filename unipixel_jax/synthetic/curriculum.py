"""All lessons of the small model: what Qwen2.5-VL's and SAM 2.1's own training, and UniPixel's first stages, are to the large one."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np
from flax import nnx

from unipixel_jax.config import UniPixelConfig
from unipixel_jax.core.files import replacing
from unipixel_jax.core.trees import join, parse
from unipixel_jax.data.synthetic.task import EVEN, Mix
from unipixel_jax.errors import UserError
from unipixel_jax.losses.mask import MaskLossWeights
from unipixel_jax.models.unipixel import UniPixelModel
from unipixel_jax.processing.tokenizer import Tokenizer
from unipixel_jax.synthetic.language_stage import BEHIND, COMPARING, RELATIONS, DrawTold, collate_told, telling_loss, verdicts
from unipixel_jax.synthetic.segmentation_stage import PICTURES, TRACKS, draw_targets, learns, segmenting_loss
from unipixel_jax.synthetic.trainer import Lesson, Weights, give, stacked, teach, weights_of
from unipixel_jax.synthetic.vision_stage import Sight, collate_sights, draw_sights, tables_of
from unipixel_jax.train.config import DataConfig
from unipixel_jax.train.trainable import Predicate, trained

KEPT = "weights.npz"
"""What a lesson taught, in its folder."""
SILENT = 0.25
"""Share of prompts without words, once SAM 2 has learned to find a place."""
FRAMES = 4
"""Of a clip that is tracked."""


@dataclass(frozen=True)
class Course:
    """Attributes:
    sight: of the vision tower and all that brings something into the language model's space.
    telling: of the language model and seg_head.
    behind: of them, the vision tower and the memory projection: what lies behind another thing.
    relations: of the same: more of the questions for which two things have to be looked at.
    comparing: of the same: more of the questions about two remembered things, and the yes or no of their answers counts more.
    places: of SAM 2, which begins with prompts that only say a place: with words it would never look at the place.
    segmenting: of SAM 2, with words.
    tracking: of SAM 2's memory and mask decoder: clips of which the first frame alone is prompted.
    """

    sight: Lesson
    telling: Lesson
    behind: Lesson
    relations: Lesson
    comparing: Lesson
    places: Lesson
    segmenting: Lesson
    tracking: Lesson


def take(course: Course, config: UniPixelConfig, tokenizer: Tokenizer, data: DataConfig, losses: MaskLossWeights, run_dir: Path, seed: int) -> Weights:
    """Take a course from nothing: the language side and SAM 2, which do not need each other, in a process each with half of the cores. What a lesson
    taught is kept in ``run_dir``, and a course that was interrupted goes on with the lessons that it was in.

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

    Raises:
        UserError: a side ended with an error, which it has printed; the other is stopped.
    """
    language = partial(teach_language, course, config, tokenizer, data, run_dir, seed)
    sam2 = partial(teach_sam2, course, config, losses, run_dir, seed)
    _side_by_side(language, sam2)
    model = UniPixelModel(config, nnx.Rngs(seed))
    for lesson in fields(course):
        give(model, _kept(run_dir / lesson.name))
    return weights_of(model, lambda *_: True)


def teach_language(course: Course, config: UniPixelConfig, tokenizer: Tokenizer, data: DataConfig, run_dir: Path, seed: int) -> None:
    """The lessons of the vision tower and the language model, as of ``take``."""
    model = UniPixelModel(config, nnx.Rngs(seed))

    def sight(directory: Path) -> Weights:
        eyes, tables, parts = Sight(config, nnx.Rngs(seed)), tables_of(config), trained(("vision", "ref", "ref_enc", "msk"))
        draw = partial(draw_sights, config)
        eyes = teach(
            eyes, lambda path, value: path[0] == "tell" or parts(path, value), course.sight, directory, seed, draw, collate_sights,
            lambda eyes, batch: eyes.loss(tables, batch),
        )  # fmt: skip
        return weights_of(eyes, parts)

    def telling(lesson: Lesson, mix: Mix, counts: Mapping[int, float], parts: Predicate, seed: int, directory: Path) -> Weights:
        draw = DrawTold(tokenizer, config, data, mix)
        collate = partial(collate_told, config, tokenizer.pad_id, data.buckets, counts)
        return weights_of(teach(model, parts, lesson, directory, seed, draw, collate, telling_loss), parts)

    give(model, _once(run_dir / "sight", sight))
    together = trained(("vision", "text", "msk", "seg"))
    give(model, _once(run_dir / "telling", partial(telling, course.telling, EVEN, {}, trained(("text", "seg")), seed)))
    give(model, _once(run_dir / "behind", partial(telling, course.behind, BEHIND, {}, together, seed + 3)))
    give(model, _once(run_dir / "relations", partial(telling, course.relations, RELATIONS, {}, together, seed + 1)))
    _once(run_dir / "comparing", partial(telling, course.comparing, COMPARING, verdicts(tokenizer), together, seed + 2))


def teach_sam2(course: Course, config: UniPixelConfig, losses: MaskLossWeights, run_dir: Path, seed: int) -> None:
    """The lessons of SAM 2, as of ``take``."""
    model = UniPixelModel(config, nnx.Rngs(seed))

    def segmenting(lesson: Lesson, parts: Sequence[str], frames: int, silent: float, seed: int, directory: Path) -> Weights:
        own, draw = partial(learns, parts), partial(draw_targets, config, frames, silent)
        return weights_of(teach(model, own, lesson, directory, seed, draw, stacked, partial(segmenting_loss, losses)), own)

    give(model, _once(run_dir / "places", partial(segmenting, course.places, PICTURES, 1, 1.0, seed)))
    give(model, _once(run_dir / "segmenting", partial(segmenting, course.segmenting, PICTURES, 1, SILENT, seed + 1)))
    _once(run_dir / "tracking", partial(segmenting, course.tracking, TRACKS, FRAMES, SILENT, seed + 2))


def _side_by_side(*sides: Callable[[], None]) -> None:
    """Teach all in processes of their own; if one fails, the others are stopped."""
    start = multiprocessing.get_context("spawn").Process
    processes = [start(target=_on_its_cores, args=(number, len(sides), side), daemon=True) for number, side in enumerate(sides)]
    for process in processes:
        process.start()
    try:
        while (running := [process.sentinel for process in processes if process.is_alive()]) and not any(process.exitcode for process in processes):
            wait(running)
    finally:
        for process in processes:
            process.terminate()
            process.join()
    if any(process.exitcode for process in processes):
        raise UserError("a lesson ended with an error, which stands above: what was learned before is kept, and the same command goes on from there")


def _on_its_cores(number: int, count: int, side: Callable[[], None]) -> None:
    """Teach a side on its share of the cores that this process may use; where a system cannot be told, on all."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[number::count] or cores)
    side()


def _once(directory: Path, lesson: Callable[[Path], Weights]) -> Weights:
    """What a lesson taught, which is not taken again if it was taken before."""
    kept = directory / KEPT
    if not kept.is_file():
        named = {join(path, "/"): array for path, array in lesson(directory).items()}
        with replacing(kept) as path, path.open("wb") as file:
            np.savez(file, **named)  # type: ignore[arg-type]
    return _kept(directory)


def _kept(directory: Path) -> Weights:
    with np.load(directory / KEPT) as arrays:
        return {parse(name, "/"): arrays[name] for name in arrays.files}
