"""Memory: before a question about marked objects is answered, the objects are segmented. It teaches the first of PixelQA's two turns.

O objects, F frames, H and W height and width in pixels, S side of SAM's square. Source: ``MemoryDataset`` in UniPixel's
``unipixel/dataset/sub_classes/memory.py``.

Kinds of turns: "locate" has a question in which each object is written as its number and ``<|ref|>``, and an answer with the numbers and ``<|seg|>``.
"""

from __future__ import annotations

import numpy as np

from unipixel_jax.data.annotation import Annotation, DrawOptions, Example
from unipixel_jax.data.frames import read_tracked, square_masks
from unipixel_jax.data.tasks.conversation import choose_turns, conversation
from unipixel_jax.data.tasks.marks import visible_frame
from unipixel_jax.data.tasks.objects import frames_of, read_objects
from unipixel_jax.data.tasks.referring import mark
from unipixel_jax.data.templates import Templates, pick
from unipixel_jax.errors import UserError


def draw(annotation: Annotation, options: DrawOptions, rng: np.random.Generator, templates: Templates) -> Example:
    """Draw frames, turns, words, and a point or box for each object; all their masks are to be segmented.

    Raises:
        UserError: an object that is on no drawn frame, more objects than ``max_objects``, or a file that cannot be read.
    """
    clip, tracked, indices = read_tracked(frames_of(annotation), options, rng)
    turns = choose_turns(annotation.turns, options.max_turns, rng)
    pairs = [(pick(templates.locate, rng).format(turn.text), turn.answer) for turn in turns]
    masks = square_masks(read_objects(turns, clip, indices, annotation.name), options.image_size)
    if options.max_objects is not None and len(masks) > options.max_objects:
        raise UserError(f"{annotation.name} has {len(masks)} objects, expected at most max_objects={options.max_objects}")
    references = []
    # points and boxes lie on frames that the language model sees
    for mask in masks if tracked is None else masks[:, clip.indices]:
        frame = visible_frame(mask, annotation.name, rng)
        references.append(mark(annotation, mask[frame], frame, rng))
    return Example(annotation, conversation(pairs), clip, masks, tracked, tuple(references), sample_frames=options.sample_frames[1])
