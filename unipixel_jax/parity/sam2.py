"""The replay of recordings of SAM 2.1 alone, through the predictor that users call (docs/sam2.md).

O objects, n tracked frames, S side of the model's square image, g = S / 16, h and w height and width of the picture or clip.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from unipixel_jax.infer.sam2 import Sam2Predictor
from unipixel_jax.parity import compare
from unipixel_jax.parity.compare import Check
from unipixel_jax.parity.recording import Case
from unipixel_jax.parity.sam2_session import session as compare_session
from unipixel_jax.processing.square import square_frames

MAX_QUESTIONS = 256
"""The most questions about a recorded picture that are accepted."""


def prompts(case: Case, predictor: Sam2Predictor) -> list[Check]:
    """Compare what is found in a picture for prompts of every kind."""
    picture = case.input("picture")
    squares = square_frames(picture[None], predictor.sam2.config.image_size).transpose(0, 3, 1, 2)
    checks = [compare.close("frames", squares, case.input("frames"), compare.FORWARD)]
    image = predictor.encode(picture)
    for number, question in enumerate(case.objects("questions", MAX_QUESTIONS)):
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


def session(case: Case, predictor: Sam2Predictor) -> list[Check]:
    """Compare tracking of objects that are prompted, corrected, added and removed."""
    return compare_session(case, predictor.sam2)


KINDS: Mapping[str, Callable[[Case, Sam2Predictor], list[Check]]] = {"sam2_prompts": prompts, "sam2_session": session}
"""The replay of each kind of case of such a recording."""
