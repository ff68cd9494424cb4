"""The replay of recordings of SAM 2.1 alone, through the predictor that users call (docs/sam2.md).

O objects, n tracked frames, S side of the model's square image, g = S / 16, h and w height and width of the picture or clip.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from unipixel_jax.errors import UserError
from unipixel_jax.infer.sam2 import Sam2Predictor
from unipixel_jax.parity import compare
from unipixel_jax.parity.compare import Check
from unipixel_jax.parity.recording import Case
from unipixel_jax.processing.square import square_frames

MAX_QUESTIONS = 256
"""The most questions of a case, and the most actions of a session, that are accepted."""


def prompts(case: Case, predictor: Sam2Predictor) -> list[Check]:
    """Compare what is found in a picture for prompts of every kind."""
    picture = case.input("picture")
    squares = square_frames(picture[None], predictor.sam2.config.image_size).transpose(0, 3, 1, 2)
    checks = [compare.close("frames", squares, case.input("frames"), compare.FORWARD)]
    image = predictor.encode(picture)
    for number, question in enumerate(entries(case, "questions")):
        given = {name: question[name] for name in ("points", "labels", "box", "multimask") if name in question}
        if "mask_input" in question:
            given["mask_input"] = case.input(question["mask_input"])
        found = predictor.segment(image, **given)
        theirs = {name: case.outputs[f"{number}.{name}"] for name in ("low_res", "iou", "masks", "object_score")}
        checks += [
            compare.close(f"{number}.low_res", found.low_res, theirs["low_res"], compare.FORWARD),
            compare.close_scores(f"{number}.iou", found.iou, theirs["iou"], compare.FORWARD),
            compare.close_scores(f"{number}.object_score", found.presence, theirs["object_score"], compare.FORWARD),
            compare.same_masks(f"{number}.masks", found.masks, theirs["masks"]),
        ]
    return checks


def entries(case: Case, name: str) -> list[Mapping[str, Any]]:
    """Return a list of objects of the case's entry.

    Raises:
        UserError: it is missing, or is something else, or is too long.
    """
    found = case.options.get(name)
    if not isinstance(found, list) or not 0 < len(found) <= MAX_QUESTIONS or not all(isinstance(one, dict) for one in found):
        raise UserError(f"{case.name}: {name} is no list of 1 to {MAX_QUESTIONS} objects: record it again, or copy it again")
    return found


KINDS: Mapping[str, Callable[[Case, Sam2Predictor], list[Check]]] = {"sam2_prompts": prompts}
"""The replay of each kind of case of such a recording."""
