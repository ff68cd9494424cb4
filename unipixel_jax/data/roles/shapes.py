"""A conversation about a scene of shapes: several questions of all kinds, whose answers name, segment, or compare.

The first question may follow the list of one or two remembered things, as in the second turn of PixelQA; another may be PixelQA's first turn, which
segments things that are pointed at.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unipixel_jax.data.annotation import Annotation, DrawOptions, Example
from unipixel_jax.data.shapes.language import Question, about, find, point_at
from unipixel_jax.data.shapes.scene import SIDE, Scene, draw_scene
from unipixel_jax.errors import UserError
from unipixel_jax.processing.media import Clip
from unipixel_jax.processing.memory import memory_prefix
from unipixel_jax.processing.prompts import REGION, SquareReference, locating_turn
from unipixel_jax.processing.tokenizer import Message

REMEMBER, LOCATE, POINT, FIRST = 0.35, 0.2, 0.4, 0.6
"""How often a conversation begins with remembered things, a question is PixelQA's first turn, any other question points at something, and a conversation
without remembered things begins with such a question."""


def draw(annotation: Annotation, options: DrawOptions, rng: np.random.Generator) -> Example:
    """Draw a scene and a conversation about it; ``annotation.data_type`` says whether it is a picture, a clip of ``options.sample_frames`` frames, a picture
    in which every question asks for a mask, or one of which only the words are learned.
    """
    if options.image_size != SIDE:
        raise UserError(f"shapes are drawn {SIDE} pixels wide, the model's SAM reads {options.image_size}: use a model of that size")
    scene = draw_scene(rng, 1 if annotation.data_type != "shapes_clip" else int(rng.integers(options.sample_frames[0], options.sample_frames[1] + 1)))
    things = _some(scene, rng)
    finding = annotation.data_type == "shapes_find"
    memory = scene.masks[list(things)] if rng.random() < REMEMBER and not finding else None
    questions = [] if memory is None else [about(scene, things, rng)]
    if not finding and memory is None and rng.random() < FIRST:
        questions.append(point_at(scene, rng))
    while len(questions) < options.max_turns:
        done = frozenset(thing for question in questions for thing in question.segmented)
        questions.append(_to_find(scene, rng, done) if finding else _question(scene, rng, done))
    messages: list[Message] = []
    for number, question in enumerate(questions):
        text = question.text if number or memory is None else _memory_text(memory) + question.text
        messages.append({"role": "user", "content": [{"type": "video"}, {"type": "text", "text": text}] if number == 0 else text})
        messages.append({"role": "assistant", "content": question.answer})
    segmented = [thing for question in questions for thing in question.segmented]
    return Example(
        annotation=annotation,
        messages=tuple(messages),
        clip=Clip(scene.frames, np.arange(len(scene.frames)), len(scene.frames) == 1, annotation.name),
        masks=None if annotation.data_type == "shapes_words" else scene.masks[segmented],
        references=tuple(refer(scene, thing, rng) for question in questions for thing in question.referred),
        memory=memory,
        sample_frames=options.sample_frames[1],
    )


def refer(scene: Scene, thing: int, rng: np.random.Generator) -> SquareReference:
    """A point inside a thing, or a box around it, on one of the frames."""
    frame = int(rng.integers(len(scene.frames)))
    rows, columns = np.nonzero(scene.masks[thing, frame])
    if rng.random() < 0.5:
        at = int(rng.integers(len(rows)))
        return SquareReference(np.array([[columns[at], rows[at]]], np.float32), frame)
    corners = np.array([[columns.min(), rows.min()], [columns.max() + 1, rows.max() + 1]]) + rng.uniform(-2, 2, (2, 2))
    return SquareReference(np.clip(corners, 0, SIDE).astype(np.float32), frame)


def _memory_text(memory: NDArray[np.bool_]) -> str:
    """The lines that list the remembered things, from their masks [O, F, S, S]."""
    objects, frames = memory.shape[:2]
    seen = np.zeros((objects, frames + frames % 2), bool)
    seen[:, :frames] = memory.any(axis=(2, 3))
    pairs = seen.T.reshape(-1, 2, objects, 1, 1)
    pairs = pairs[:, 0] | pairs[:, 1]
    return memory_prefix(pairs, frames)


def _question(scene: Scene, rng: np.random.Generator, done: frozenset[int]) -> Question:
    return point_at(scene, rng) if rng.random() < POINT else _to_find(scene, rng, done)


def _to_find(scene: Scene, rng: np.random.Generator, done: frozenset[int]) -> Question:
    """A question whose answer segments: one that names a thing, or PixelQA's first turn, which points at one or two."""
    if rng.random() >= LOCATE:
        return find(scene, rng, done)
    things = _some(scene, rng)
    asked = about(scene, things, rng).text
    names = [f"[{i}]" for i in range(len(things)) if f"[{i}]" in asked]
    for name in names:
        asked = asked.replace(name, REGION)
    referred = things[: len(names)]
    return Question("locate", *locating_turn(asked, len(names)), referred, referred)


def _some(scene: Scene, rng: np.random.Generator) -> tuple[int, ...]:
    """One or two things, in any order."""
    return tuple(rng.permutation(len(scene.things))[: int(rng.integers(1, 3))].tolist())
