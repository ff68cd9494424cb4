"""Referring: a marked point or box is described. Only the language side learns.

O objects, F frames, H and W height and width in pixels, S side of SAM's square. Source: ``ReferringDataset`` in UniPixel's
``unipixel/dataset/sub_classes/referring.py``.

Kinds of turns: "qa" has its own question, with a ``<|ref|>`` for each object; "caption" is asked with a drawn question about one object.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unipixel_jax.data.annotation import Annotation, DrawOptions, Example, Turn
from unipixel_jax.data.frames import square_masks
from unipixel_jax.data.tasks.conversation import choose_turns, conversation
from unipixel_jax.data.tasks.marks import draw_box, draw_point, visible_frame
from unipixel_jax.data.tasks.objects import read_clip, read_objects
from unipixel_jax.data.templates import Templates, pick
from unipixel_jax.processing.prompts import SquareReference
from unipixel_jax.processing.tokenizer import REF_TOKEN


def draw(annotation: Annotation, options: DrawOptions, rng: np.random.Generator, templates: Templates) -> Example:
    """Draw frames, turns, words, and a point or box for each object.

    Raises:
        UserError: an object that is on no drawn frame, or a file that cannot be read.
    """
    clip, indices = read_clip(annotation, options, rng)
    turns = choose_turns(annotation.turns, options.max_turns, rng)
    masks = read_objects(turns, clip, indices, annotation.name)
    references = []
    for mask in masks:
        frame = visible_frame(mask, annotation.name, rng)
        square = square_masks(mask[None, frame : frame + 1], options.image_size)[0, 0]
        references.append(mark(annotation, square, frame, rng))
    pairs = [_words(turn, rng, templates) for turn in turns]
    return Example(annotation, conversation(pairs), clip, references=tuple(references), sample_frames=options.sample_frames[1])


def mark(annotation: Annotation, mask: NDArray[np.bool_], frame: int, rng: np.random.Generator) -> SquareReference:
    """A point or a box, as the annotation's data type says, for a mask in SAM's square, bool [S, S]."""
    return draw_point(mask, frame, rng) if "point" in annotation.data_type else draw_box(mask, frame, rng)


def _words(turn: Turn, rng: np.random.Generator, templates: Templates) -> tuple[str, str]:
    if turn.kind == "caption":
        return pick(templates.caption, rng).format(REF_TOKEN), turn.answer
    return turn.text, turn.answer
