"""A conversation about a scene of shapes: several questions of all kinds, whose answers name, segment, or compare.

A question may follow the list of one or two remembered things, as in the second turn of PixelQA; another may be PixelQA's first turn, which segments things
that are pointed at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unipixel_jax.data.annotation import Annotation, DrawOptions, Example
from unipixel_jax.data.synthetic.language import SINGLE, Question, about, describe, find, point_at
from unipixel_jax.data.synthetic.scene import SIDE, Scene, draw_scene
from unipixel_jax.errors import UserError
from unipixel_jax.processing.media import Clip
from unipixel_jax.processing.memory import memory_prefix
from unipixel_jax.processing.prompts import REGION, SquareReference, locating_turn
from unipixel_jax.processing.tokenizer import Message

CLIP_TURNS = 2
"""Turns of a conversation about a clip, at most: its frames take the room of further ones."""


@dataclass(frozen=True)
class Mix:
    """How often each kind of question is asked. All but ``find`` and ``paired`` are probabilities.

    Attributes:
        point: that a question points at something.
        locate: that any other question is PixelQA's first turn, where masks are learned.
        find: shares of the ways to ask for a thing (data/synthetic/language.py), with more of the harder ones than users are taken to ask for.
        memories: that a conversation of which only words are learned is about remembered things in all its turns.
        remember: that a conversation with masks begins with remembered things.
        pair: that two things are remembered, instead of one.
        words: that only words of a conversation are learned, where data sets do not say so.
        single: that a question about two remembered things is about one of them.
        paired: whether in every scene something lies behind another thing.
    """

    point: float = 0.4
    locate: float = 0.3
    find: tuple[float, float, float] = (0.4, 0.35, 0.25)
    memories: float = 0.4
    remember: float = 0.25
    pair: float = 0.5
    words: float = 0.4
    single: float = SINGLE
    paired: bool = False


EVEN = Mix()

Turn = tuple[tuple[int, ...], Question]
"""The things that a turn lists as remembered, none in most, and its question."""


def draw(annotation: Annotation, options: DrawOptions, rng: np.random.Generator) -> Example:
    """Draw a scene and a conversation about it; ``annotation.data_type`` says whether it is an image, a clip of ``options.sample_frames`` frames, or a
    image of which only words are learned.
    """
    if options.image_size != SIDE:
        raise UserError(f"shapes are drawn {SIDE} pixels wide, the model's SAM reads {options.image_size}: use a model of that size")
    kind = annotation.data_type
    scene = draw_scene(rng, 1 if kind != "shapes_clip" else int(rng.integers(options.sample_frames[0], options.sample_frames[1] + 1)))
    turns = conversation(scene, options.max_turns if kind != "shapes_clip" else min(options.max_turns, CLIP_TURNS), rng, masks=kind != "shapes_words")
    return example_of(annotation, scene, turns, options, rng, masks=kind != "shapes_words")


def example_of(annotation: Annotation, scene: Scene, turns: Sequence[Turn], options: DrawOptions, rng: np.random.Generator, *, masks: bool) -> Example:
    """The conversation of ``turns`` about a scene, with or without ``masks`` to learn from."""
    questions = [question for _, question in turns]
    remembered = [thing for things, _ in turns for thing in things]
    messages: list[Message] = []
    for number, (things, question) in enumerate(turns):
        text = (_memory_text(scene.masks[list(things)]) if things else "") + question.text
        messages.append({"role": "user", "content": [{"type": "video"}, {"type": "text", "text": text}] if number == 0 else text})
        messages.append({"role": "assistant", "content": question.answer})
    return Example(
        annotation=annotation,
        messages=tuple(messages),
        clip=Clip(scene.frames, np.arange(len(scene.frames)), len(scene.frames) == 1, annotation.name),
        masks=scene.masks[[thing for question in questions for thing in question.segmented]] if masks else None,
        references=tuple(refer(scene, thing, rng) for question in questions for thing in question.referred),
        memory=scene.masks[remembered] if remembered else None,
        sample_frames=options.sample_frames[1],
    )


def conversation(scene: Scene, count: int, rng: np.random.Generator, *, masks: bool, mix: Mix = EVEN) -> list[Turn]:
    """Turns of a conversation, ``count`` of them, with ``masks`` to learn or words only. One that is about remembered things alone begins with any questions
    about some, and goes on with a description of each, of which there may be fewer; the other way round, the answers could be read off.
    """
    if not masks and rng.random() < mix.memories:
        some = [_some(scene, rng, mix) for _ in range(count // 2)]
        each = rng.permutation(len(scene.things))[: count - count // 2].tolist()
        return [*((things, about(scene, things, rng, mix.single)) for things in some), *(((thing,), describe(scene, thing, rng)) for thing in each)]
    turns: list[Turn] = []
    if masks and rng.random() < mix.remember:
        things = _some(scene, rng, mix)
        turns.append((things, about(scene, things, rng, mix.single)))
    while len(turns) < count:
        done = frozenset(thing for _, question in turns for thing in question.segmented)
        turns.append(((), _question(scene, rng, done, masks, mix)))
    return turns


def refer(scene: Scene, thing: int, rng: np.random.Generator) -> SquareReference:
    """A point inside a thing, or a box around it, on one of the frames."""
    frame = int(rng.integers(len(scene.frames)))
    if rng.random() < 0.5:
        return SquareReference(point_inside(scene, thing, frame, rng)[None], frame)
    rows, columns = np.nonzero(scene.masks[thing, frame])
    corners = np.array([[columns.min(), rows.min()], [columns.max() + 1, rows.max() + 1]]) + rng.uniform(-2, 2, (2, 2))
    return SquareReference(np.clip(corners, 0, SIDE).astype(np.float32), frame)


def point_inside(scene: Scene, thing: int, frame: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """A random pixel of a thing in a frame: x and y [2]."""
    rows, columns = np.nonzero(scene.masks[thing, frame])
    at = int(rng.integers(len(rows)))
    return np.array([columns[at], rows[at]], np.float32)


def _memory_text(memory: NDArray[np.bool_]) -> str:
    """The lines that list the remembered things, from their masks [O, F, S, S]."""
    objects, frames = memory.shape[:2]
    seen = np.zeros((objects, frames + frames % 2), bool)
    seen[:, :frames] = memory.any(axis=(2, 3))
    pairs = seen.T.reshape(-1, 2, objects, 1, 1)
    pairs = pairs[:, 0] | pairs[:, 1]
    return memory_prefix(pairs, frames)


def _question(scene: Scene, rng: np.random.Generator, done: frozenset[int], masks: bool, mix: Mix) -> Question:
    """Any question but those about remembered things; where ``masks`` are learned, PixelQA's first turn, which segments one or two things that are pointed
    at, is among them.
    """
    if rng.random() < mix.point:
        return point_at(scene, rng, masks)
    if not masks or rng.random() >= mix.locate:
        return find(scene, rng, done, mix.find)
    things = _some(scene, rng, mix)
    asked = about(scene, things, rng).text
    names = [f"[{i}]" for i in range(len(things)) if f"[{i}]" in asked]
    for name in names:
        asked = asked.replace(name, REGION)
    referred = things[: len(names)]
    return Question("locate", *locating_turn(asked, len(names)), referred, referred)


def _some(scene: Scene, rng: np.random.Generator, mix: Mix) -> tuple[int, ...]:
    """The numbers of one or two things, in any order."""
    return tuple(rng.permutation(len(scene.things))[: 1 + int(rng.random() < mix.pair)].tolist())
