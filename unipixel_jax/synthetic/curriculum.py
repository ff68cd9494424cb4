"""The stages that train the small model from nothing: what Qwen2.5-VL's and SAM 2.1's own training, and UniPixel's first stages, are to the large one."""

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
from unipixel_jax.synthetic.initializers import initialize
from unipixel_jax.synthetic.language_stage import COMPARISON, OCCLUSION, RELATIONS, DrawLanguageSample, collate_language, language_loss, verdict_weights
from unipixel_jax.synthetic.segmentation_stage import IMAGE_PARTS, TRACKING_PARTS, draw_targets, is_trained, segmentation_loss
from unipixel_jax.synthetic.trainer import StageConfig, Weights, load_weights, stack_samples, train_stage, weights_of
from unipixel_jax.synthetic.vision_stage import VisionProbe, collate_vision, draw_vision_sample, vision_tables
from unipixel_jax.train.config import DataConfig
from unipixel_jax.train.trainable import Predicate, trained

WEIGHTS = "weights.npz"
"""The file in the folder of a stage that holds the weights it trained."""
WORDLESS = 0.25
"""Share of SAM 2's prompts that say a place and no words, once it has learned to find a place."""
CLIP_FRAMES = 4
"""Frames of a clip that is tracked."""


@dataclass(frozen=True)
class Curriculum:
    """All stages. The first five train the language side, one after the other; the last three train SAM 2.

    Attributes:
        vision: trains the vision tower, and all else that brings something into the language model's space.
        language: trains the language model and seg_head.
        occlusion: trains these, the vision tower and the memory projection on what lies behind another thing.
        relations: trains the same parts, with more of the questions for which two things have to be compared or related.
        comparison: trains the same parts, with more of the questions about two remembered things, and more weight on the yes or no of their answers.
        localization: trains SAM 2 with prompts that only say a place. If words came at once, it would never use the place.
        segmentation: trains SAM 2 with prompts that say words too.
        tracking: trains SAM 2's memory and mask decoder on clips of which the first frame alone is prompted.
    """

    vision: StageConfig
    language: StageConfig
    occlusion: StageConfig
    relations: StageConfig
    comparison: StageConfig
    localization: StageConfig
    segmentation: StageConfig
    tracking: StageConfig


def run_curriculum(
    curriculum: Curriculum, config: UniPixelConfig, tokenizer: Tokenizer, data: DataConfig, losses: MaskLossWeights, run_dir: Path, seed: int
) -> Weights:
    """Train a model from nothing. The language side and SAM 2, which do not need each other, train in a process each, with half of the cores.

    What a stage has trained is kept in ``run_dir``; a curriculum that was interrupted goes on with the stages that it was in.

    Args:
        curriculum: how long each stage trains, and how fast.
        config: sizes of the model.
        tokenizer: for the conversations.
        data: sizes of the conversations.
        losses: weights of the parts of the mask loss.
        run_dir: gets a folder for each stage, with its metrics as those of a run.
        seed: of the weights at the start, and of the scenes.

    Returns:
        All of the model's weights, by path.

    Raises:
        UserError: a side ended with an error, which it has printed; the other is stopped.
    """
    language = partial(train_language_side, curriculum, config, tokenizer, data, run_dir, seed)
    sam2 = partial(train_sam2_side, curriculum, config, losses, run_dir, seed)
    _side_by_side(language, sam2)
    model = initial_model(config, seed)
    for stage in fields(curriculum):
        load_weights(model, _read_weights(run_dir / stage.name))
    return weights_of(model, lambda *_: True)


def initial_model(config: UniPixelConfig, seed: int) -> UniPixelModel:
    """The model before the first stage."""
    model = UniPixelModel(config, nnx.Rngs(seed))
    initialize(model)
    return model


def train_language_side(curriculum: Curriculum, config: UniPixelConfig, tokenizer: Tokenizer, data: DataConfig, run_dir: Path, seed: int) -> None:
    """Train the vision tower and the language model; the arguments are those of ``run_curriculum``."""
    model = initial_model(config, seed)

    def vision(directory: Path) -> Weights:
        probe, tables, parts = VisionProbe(config, nnx.Rngs(seed)), vision_tables(config), trained(("vision", "ref", "ref_enc", "msk"))
        draw = partial(draw_vision_sample, config)
        probe = train_stage(
            probe, lambda path, value: path[0] == "probe" or parts(path, value), curriculum.vision, directory, seed, draw, collate_vision,
            lambda probe, batch: probe.loss(tables, batch),
        )  # fmt: skip
        return weights_of(probe, parts)

    def language(stage: StageConfig, mix: Mix, weights: Mapping[int, float], parts: Predicate, seed: int, directory: Path) -> Weights:
        draw = DrawLanguageSample(tokenizer, config, data, mix)
        collate = partial(collate_language, config, tokenizer.pad_id, data.buckets, weights)
        return weights_of(train_stage(model, parts, stage, directory, seed, draw, collate, language_loss), parts)

    load_weights(model, _run_once(run_dir / "vision", vision))
    joint = trained(("vision", "text", "msk", "seg"))
    load_weights(model, _run_once(run_dir / "language", partial(language, curriculum.language, EVEN, {}, trained(("text", "seg")), seed)))
    load_weights(model, _run_once(run_dir / "occlusion", partial(language, curriculum.occlusion, OCCLUSION, {}, joint, seed + 3)))
    load_weights(model, _run_once(run_dir / "relations", partial(language, curriculum.relations, RELATIONS, {}, joint, seed + 1)))
    _run_once(run_dir / "comparison", partial(language, curriculum.comparison, COMPARISON, verdict_weights(tokenizer), joint, seed + 2))


def train_sam2_side(curriculum: Curriculum, config: UniPixelConfig, losses: MaskLossWeights, run_dir: Path, seed: int) -> None:
    """Train SAM 2; the arguments are those of ``run_curriculum``."""
    model = initial_model(config, seed)

    def segmentation(stage: StageConfig, names: Sequence[str], frames: int, wordless: float, seed: int, directory: Path) -> Weights:
        parts, draw = partial(is_trained, names), partial(draw_targets, config, frames, wordless)
        return weights_of(train_stage(model, parts, stage, directory, seed, draw, stack_samples, partial(segmentation_loss, losses)), parts)

    load_weights(model, _run_once(run_dir / "localization", partial(segmentation, curriculum.localization, IMAGE_PARTS, 1, 1.0, seed)))
    load_weights(model, _run_once(run_dir / "segmentation", partial(segmentation, curriculum.segmentation, IMAGE_PARTS, 1, WORDLESS, seed + 1)))
    _run_once(run_dir / "tracking", partial(segmentation, curriculum.tracking, TRACKING_PARTS, CLIP_FRAMES, WORDLESS, seed + 2))


def _side_by_side(*sides: Callable[[], None]) -> None:
    """Run all sides in processes of their own; if one fails, the others are stopped."""
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
        raise UserError("a stage ended with an error, which stands above: the stages before it are kept, and the same command goes on from there")


def _on_its_cores(number: int, count: int, side: Callable[[], None]) -> None:
    """Run a side on its share of the cores that this process may use; where a system cannot be told, on all."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[number::count] or cores)
    side()


def _run_once(directory: Path, stage: Callable[[Path], Weights]) -> Weights:
    """The weights that a stage trains; a stage whose weights are there already is not run again."""
    file = directory / WEIGHTS
    if not file.is_file():
        named = {join(path, "/"): array for path, array in stage(directory).items()}
        with replacing(file) as path, path.open("wb") as target:
            np.savez(target, **named)  # type: ignore[arg-type]
    return _read_weights(directory)


def _read_weights(directory: Path) -> Weights:
    with np.load(directory / WEIGHTS) as arrays:
        return {parse(name, "/"): arrays[name] for name in arrays.files}
