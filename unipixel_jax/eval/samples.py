"""The samples of each benchmark: what is shown and asked, and what is written of the answer.

O objects, F frames, H height, W width. Wordings, frames and pixel budgets are the protocol of UniPixel's ``unipixel/eval/infer_*.py`` and of the data sets in
``unipixel/dataset/sub_classes``: with others, scores cannot be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unipixel_jax.data.prompts_segmentation import DESCRIPTIONS, IMAGE_QUERIES, QUESTIONS, SENTENCES, VIDEO_QUERIES, bare_name
from unipixel_jax.errors import UserError
from unipixel_jax.infer.job_source import Job
from unipixel_jax.infer.prediction import Prediction


@dataclass(frozen=True)
class Settings:
    """How a benchmark is run.

    Attributes:
        sample_frames: frames of a clip that the language model looks at.
        single_frame: objects of VideoRefer-Bench are marked on one frame only.
        prompt_type: how PixelQA's objects are pointed at: "point", "box", or "mix" for half of them each.
        image_size: side of SAM's square in pixels.
        consistent: of a clip, SAM sees only the frames that the language model looks at, as in training, and tracks through them ("track") or segments each
            by the prompt alone ("frame"); "" for all frames, as the reference's evaluation does.
    """

    sample_frames: int = 16
    single_frame: bool = False
    prompt_type: str = "point"
    image_size: int = 768
    consistent: str = ""


@dataclass(frozen=True, eq=False)
class Sample:
    """One sample of a benchmark.

    Attributes:
        name: tells it from the others.
        job: makes what the model is asked; called when its turn comes.
        record: makes the record of an answer, or of none where it failed; called once, and writes the masks where there are any. A record with a "reason"
            is that of a failure.
        then: makes what the model is asked next, from the answer; None where it is asked once.
    """

    name: str
    job: Callable[[], Job]
    record: Callable[[Prediction | None], dict[str, Any]]
    then: Callable[[Prediction], Job] | None = None


ListSamples = Callable[[str, str, Path, Path, Settings], Sequence[Sample]]
"""A function from a benchmark's name, a split, the data root, the folder of predictions and the settings to the samples in their order."""

SENTENCE, QUERY, QUESTION, DESCRIPTION = "sentence", "query", "question", "description"

_WORDS: Mapping[str, str] = {SENTENCE: SENTENCES[0], QUESTION: QUESTIONS[0], DESCRIPTION: DESCRIPTIONS[0]}


def segmentation_prompt(kind: str, text: str, media: str) -> str:
    """The words that ask for a mask: the first of each list with which training asks, since that is the benchmarks'.

    Args:
        kind: "query" for a name, or "sentence", "question" or "description".
        text: the name or the words.
        media: "image" or "video".

    Raises:
        UserError: a name is empty.
    """
    if kind != QUERY:
        return _WORDS[kind].format(text)
    name = text.strip(".")
    if not name:
        raise UserError(f"the expression {text!r} names nothing: leave it out of the list")
    return (IMAGE_QUERIES if media == "image" else VIDEO_QUERIES)[0].format(bare_name(name))


def choice_prompt(question: str, options: Sequence[str]) -> str:
    """A multiple-choice question with its options, each on a line, and the wish for one of them."""
    return "\n".join([f"{question}\nOptions:", *options, "Please only give the best option."])


def spoken(prediction: Prediction | None, answer_start: str) -> str:
    """What the model said after the words that were given; "?" where it failed, which no option is."""
    return "?" if prediction is None else prediction.text.removeprefix(answer_start)


def why_no_masks(prediction: Prediction, frames: int) -> str:
    """Why an answer has no mask of a first object on each of the frames; "" where it has."""
    if not prediction.objects:
        return f"the answer segments nothing: {prediction.text[:80]!r}"
    return "" if len(prediction.frames) == frames else f"{len(prediction.frames)} of {frames} frames can be read"


def first_masks(prediction: Prediction) -> Iterator[NDArray[np.bool_]]:
    """The masks of the first object on each frame, bool [H, W] each."""
    return (prediction.objects[0].mask(place) for place in range(len(prediction.frames)))


def require_file(path: Path) -> Path:
    """Return the path if something is there.

    Raises:
        UserError: nothing is.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist: put the data set there, or give another --data")
    return path

