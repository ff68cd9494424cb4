"""Region: the prompt lists objects with ``<|mem|>`` tokens for the frames on which they are visible, and questions speak of them by number.

O objects, F frames, H and W height and width in pixels, T pairs of frames. Source: ``RegionDataset`` in UniPixel's
``unipixel/dataset/sub_classes/region.py``.

The first turn has the masks and ``ids`` of all objects of the conversation; where it has no ``ids``, there is one object, written ``<region>``, whose
number is drawn. Kinds of turns:
    "qa": its own question and answer.
    "clip_qa": the same, but half of the samples show their objects on one frame only, as a user's single mark would.
    "describe": asked with a drawn question about one object, whose number in brackets is the turn's text.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unipixel_jax.data.annotation import Annotation, DrawOptions, Example, Turn
from unipixel_jax.data.tasks.conversation import conversation
from unipixel_jax.data.tasks.objects import read_clip, read_objects
from unipixel_jax.data.templates import Templates, pick
from unipixel_jax.errors import UserError
from unipixel_jax.processing.memory import memory_prefix
from unipixel_jax.processing.prompts import REGION

_NUMBERS = 16
"""The number of a single object is drawn below this."""


def draw(annotation: Annotation, options: DrawOptions, rng: np.random.Generator, templates: Templates) -> Example:
    """Draw frames, words and numbers; all turns are taken, since later ones may build on earlier ones.

    Raises:
        UserError: an object that is on no drawn frame, or a file that cannot be read.
    """
    clip, indices = read_clip(annotation, options, rng)
    masks = read_objects(annotation.turns[:1], clip, indices, annotation.name)
    ids = annotation.turns[0].ids or (int(rng.integers(_NUMBERS)),)
    if annotation.turns[0].kind == "clip_qa" and rng.random() < 0.5:
        masks = _on_one_frame(masks, rng)
    seen = _pairs(masks)
    if not seen.any(axis=0).all():
        raise UserError(f"{annotation.name}: an object's mask is empty on all {len(clip.frames)} frames that were drawn; expected at least one pixel")
    pairs = [_words(turn, ids[0], rng, templates) for turn in annotation.turns]
    pairs[0] = memory_prefix(seen[..., None, None], len(clip.frames), ids) + pairs[0][0], pairs[0][1]
    return Example(annotation, conversation(pairs), clip, memory=masks, sample_frames=options.sample_frames[1])


def _on_one_frame(masks: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.bool_]:
    """The masks on one frame on which all objects are visible, if there is any, and none on the others."""
    frames = np.flatnonzero(masks.any(axis=(2, 3)).all(axis=0))
    if not len(frames):
        return masks
    out = np.zeros_like(masks)
    frame = rng.choice(frames)
    out[:, frame] = masks[:, frame]
    return out


def _pairs(masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """In which pairs of frames each object is visible [T, O]; the last of an odd number of frames is a pair of its own."""
    objects, frames = masks.shape[:2]
    visible = np.zeros((objects, frames + frames % 2), bool)
    visible[:, :frames] = masks.any(axis=(2, 3))
    return (visible[:, ::2] | visible[:, 1::2]).T


def _words(turn: Turn, drawn: int, rng: np.random.Generator, templates: Templates) -> tuple[str, str]:
    if turn.kind == "describe":
        return pick(templates.describe, rng).format(turn.text), turn.answer
    return turn.text.replace(REGION, f"[{drawn}]"), turn.answer
