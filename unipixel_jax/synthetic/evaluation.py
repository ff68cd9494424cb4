"""How well a model does on scenes of shapes it has never seen: through the same calls that users make, with questions of one turn.

Measured are the mean IoU of masks asked for in words in images, J (mean IoU over frames) in clips and in their frames after the first (of which only
memory tells which object is meant), the IoU with the right object when another is named, and the shares of right answers about things that are pointed at
(asked at once, or after remembering them), and about one or two remembered things (PixelQA). An answer is right if it is the expected one word for word.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from unipixel_jax.data.synthetic.language import FIND, POINT, Question, about, find, full_name
from unipixel_jax.data.synthetic.scene import Scene, draw_scene
from unipixel_jax.data.synthetic.task import refer
from unipixel_jax.infer.prediction import Prediction
from unipixel_jax.infer.predictor import DESCRIBE, UniPixel
from unipixel_jax.processing.prompts import REGION, Box, Point, Reference
from unipixel_jax.processing.tokenizer import REF_TOKEN

SEED = 20_260_000
"""Of the scenes; training draws from other seeds (data/loader.py)."""
FRAMES = 4
MAX_NEW_TOKENS = 24


@dataclass(frozen=True)
class Judged:
    """One question about one scene.

    Attributes:
        measure: what it counts towards.
        kind: of question.
        score: IoU, or 1 and 0 for right and wrong.
        scene: what was shown.
        question: what was asked.
        prediction: what the model said.
        target: the thing that the answer should segment, None for none.
    """

    measure: str
    kind: str
    score: float
    scene: Scene
    question: str
    prediction: Prediction
    target: int | None


def judge(model: UniPixel, images: int, clips: int, seed: int = SEED) -> Iterator[Judged]:
    """Ask about ``images`` images and ``clips`` clips; each image gives one question of every measure."""
    for number in range(images):
        rng = np.random.default_rng([seed, 1, number])
        scene = draw_scene(rng)
        yield _found(model, "picture_iou", scene, find(scene, rng))
        yield _wrong(model, scene, rng)
        yield from _pointed(model, scene, rng)
        yield _asked(model, scene, rng)
    for number in range(clips):
        rng = np.random.default_rng([seed, 2, number])
        scene = draw_scene(rng, FRAMES)
        found = _found(model, "clip_j", scene, find(scene, rng))
        yield found
        yield _tracked(found)


def summary(judged: list[Judged]) -> dict[str, dict[str, float]]:
    """Mean score and number of questions, by measure, and by measure and kind."""
    scores: Mapping[str, list[float]] = defaultdict(list)
    for one in judged:
        scores[one.measure].append(one.score)
        scores[f"{one.measure}/{one.kind}"].append(one.score)
    return {name: {"mean": float(np.mean(values)), "count": len(values)} for name, values in sorted(scores.items())}


def iou(found: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Mean over frames [F, H, W] of the intersection over union; 1 for a frame where both are empty."""
    union = np.sum(found | truth, axis=(1, 2))
    both = np.sum(found & truth, axis=(1, 2))
    return float(np.mean(np.where(union > 0, both / np.maximum(union, 1), 1.0)))


def _found(model: UniPixel, measure: str, scene: Scene, question: Question) -> Judged:
    """Ask for a thing in words; an answer without exactly one mask scores 0."""
    prediction = model.segment(scene.frames, question.text, max_new_tokens=MAX_NEW_TOKENS)
    (thing,) = question.segmented
    return Judged(measure, question.kind, _overlap(prediction, scene.masks[thing]), scene, question.text, prediction, thing)


def _tracked(found: Judged) -> Judged:
    """The same answer in the frames after the first."""
    return replace(found, measure="tracked_j", score=_overlap(found.prediction, found.scene.masks[found.target], first=1))


def _overlap(prediction: Prediction, truth: NDArray[np.bool_], first: int = 0) -> float:
    return iou(prediction.objects[0].masks[first:], truth[first:]) if len(prediction.objects) == 1 else 0.0


def _wrong(model: UniPixel, scene: Scene, rng: np.random.Generator) -> Judged:
    """Name one thing, and compare the mask with another: small if the words matter."""
    right, named = rng.permutation(len(scene.things))[:2].tolist()
    text = str(rng.choice(FIND)).format(f"the {full_name(scene, named)}")
    prediction = model.segment(scene.frames, text, max_new_tokens=MAX_NEW_TOKENS)
    score = max((iou(item.masks, scene.masks[right]) for item in prediction.objects), default=0.0)
    return Judged("wrong_prompt_iou", "look", score, scene, text, prediction, right)


def _pointed(model: UniPixel, scene: Scene, rng: np.random.Generator) -> Iterator[Judged]:
    """Have a thing that is pointed at or boxed described: at once, and as PixelQA does, which segments it, remembers that, and describes what it remembers."""
    thing = int(rng.integers(len(scene.things)))
    reference, text = _reference(scene, thing, rng), str(rng.choice(POINT)).replace(REF_TOKEN, REGION)
    kind, right = "box" if isinstance(reference, Box) else "point", f"It is a {full_name(scene, thing)}."
    at_once = model.segment(scene.frames, text, [reference], max_new_tokens=MAX_NEW_TOKENS)
    yield Judged("reference_right", kind, float(at_once.text == right), scene, text, at_once, None)
    remembered = model.describe(scene.frames, reference, max_new_tokens=MAX_NEW_TOKENS)
    yield Judged("remembered_right", kind, float(remembered.text == right), scene, DESCRIBE, remembered, None)


def _asked(model: UniPixel, scene: Scene, rng: np.random.Generator) -> Judged:
    """PixelQA's two turns about two things (or one, where the question speaks of only one)."""
    things = tuple(rng.permutation(len(scene.things))[:2].tolist())
    while True:
        question = about(scene, things, rng)
        named = [i for i in range(2) if f"[{i}]" in question.text]
        if len(named) == 2 or len(things) == 1:
            break
        things = (things[named[0]],)
    text = question.text
    for i in range(len(things)):
        text = text.replace(f"[{i}]", REGION)
    prediction = model.ask(scene.frames, text, [_reference(scene, thing, rng) for thing in things], max_new_tokens=MAX_NEW_TOKENS)
    return Judged("pixelqa_right", question.kind, float(prediction.text == question.answer), scene, text, prediction, None)


def _reference(scene: Scene, thing: int, rng: np.random.Generator) -> Reference:
    """A user's point or box: the scene is as large as SAM's square, so the pixels are the same."""
    square = refer(scene, thing, rng)
    values = square.coords.reshape(-1).tolist()
    make: Callable[..., Reference] = Box if len(values) == 4 else Point
    return make(*values, frame=square.frame)
