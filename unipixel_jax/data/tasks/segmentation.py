"""Samples that ask for masks of things named, described or asked about.

A turn asks for one mask. Its kinds are:

- ``query``: a name or short description, "the dog on the left";
- ``part``: a part of something, "object:part";
- ``sentence``: a whole sentence or question that gets a mask for its answer;
- ``question``: a question with an answer in words and a mask;
- ``explanatory``: a question that gets a mask and then an explanation;
- ``description``: a text of several sentences;
- ``classes``: every class of a label image, each as a query; its masks are ``LabelClasses``.

O objects, F frames, S side of SAM's square. Source: ``SegmentationDataset`` in UniPixel's ``unipixel/dataset/sub_classes/segmentation.py``.
"""

from __future__ import annotations

import numpy as np

from unipixel_jax.data.annotation import Annotation, DrawOptions, Example, FrameFiles, Turn, VideoFrames
from unipixel_jax.data.frames import read_tracked, square_masks
from unipixel_jax.data.masks import LabelClasses
from unipixel_jax.data.prompts_segmentation import bare_name
from unipixel_jax.data.tasks.conversation import choose_turns, conversation
from unipixel_jax.data.templates import Templates, pick
from unipixel_jax.errors import UserError
from unipixel_jax.processing.tokenizer import SEG_TOKEN

_ASKED = ("sentence", "question", "explanatory", "description")
"""The kinds of turns whose lists of templates have their names."""


def draw(annotation: Annotation, options: DrawOptions, rng: np.random.Generator, templates: Templates) -> Example:
    """Choose frames and turns, word them, and read the masks at SAM's size.

    Args:
        annotation: with the task "segmentation".
        options: how to draw.
        rng: random numbers.
        templates: the sentences to draw from.

    Returns:
        One mask [F, S, S] for each turn. A mask may be empty, where none of SAM's frames shows the object.

    Raises:
        UserError: a file is missing or broken, a turn has no masks or no words, or there are more objects than allowed.
    """
    if not isinstance(annotation.media, FrameFiles | VideoFrames):
        raise UserError(f"{annotation.name} has nothing to segment in: expected frames or a video")
    turns = choose_turns(_present(annotation), options.max_turns, rng)
    clip, tracked, indices = read_tracked(annotation.media, options, rng)
    pairs = [_word(turn, annotation, rng, templates) for turn in turns]
    height, width = clip.frames.shape[1:3]
    masks = []
    for turn in turns:
        if turn.masks is None:
            raise UserError(f"{annotation.name} has no masks: this split of {annotation.source} cannot be trained on")
        masks.append(square_masks(turn.masks.read(indices, (height, width)), options.image_size))
    stacked = np.concatenate(masks)
    if options.max_objects is not None and len(stacked) > options.max_objects:
        raise UserError(f"{annotation.name} has {len(stacked)} objects, expected at most {options.max_objects}")
    return Example(annotation, conversation(pairs), clip, stacked, tracked, sample_frames=options.sample_frames[1])


def _present(annotation: Annotation) -> list[Turn]:
    """The turns, with those for classes replaced by one for each class that is there."""
    turns: list[Turn] = []
    for turn in annotation.turns:
        turns += turn.masks.turns() if isinstance(turn.masks, LabelClasses) else [turn]
    return turns


def _word(turn: Turn, annotation: Annotation, rng: np.random.Generator, templates: Templates) -> tuple[str, str]:
    """The question and the answer of a turn."""
    if turn.kind in ("query", "part"):
        queries = templates.image_query if "image" in annotation.data_type else templates.video_query
        question = pick(queries, rng).format(_name(turn, annotation, rng))
    elif turn.kind in _ASKED:
        question = pick(getattr(templates, turn.kind), rng).format(turn.text)
    else:
        known = ", ".join(("query", "part", *_ASKED, "classes"))
        raise UserError(f"{annotation.name} has a turn of kind {turn.kind!r}, expected one of {known}")
    if turn.kind == "question":
        return question, f"{turn.answer} {SEG_TOKEN}."
    answer = pick(templates.answer, rng)
    return question, f"{answer} {turn.answer}" if turn.kind == "explanatory" else answer


def _name(turn: Turn, annotation: Annotation, rng: np.random.Generator) -> str:
    """What is asked for, without full stops around it, a capital at its start, or an article."""
    name = turn.text.strip(".")
    if turn.kind == "part":
        thing, part = turn.text.split(":")
        name = f"{thing} {part}" if rng.random() < 0.5 else f"{part} of the {thing}"
    if not name:
        raise UserError(f"{annotation.name} asks for {turn.text!r}, expected a name")
    return bare_name(name)
