"""The sentences with which samples ask and answer: this project's own (data/prompts_*.py), or those of a file.

A model answers best to the words that it was trained with, so a training that is to be compared with another needs the other's words. They are not part of the
data: packed data sets hold what the sentences speak of, and are asked about in any sentences.
"""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from unipixel_jax.core.files import read_json_object
from unipixel_jax.data.prompts_regions import CAPTION_PROMPTS, DESCRIBE_PROMPTS, LOCATE_PROMPTS
from unipixel_jax.data.prompts_segmentation import ANSWERS, DESCRIPTIONS, EXPLANATIONS, IMAGE_QUERIES, QUESTIONS, SENTENCES, VIDEO_QUERIES
from unipixel_jax.errors import UserError
from unipixel_jax.processing.tokenizer import SEG_TOKEN

_ADVICE = "expected a JSON object with lists of sentences, see docs/data.md"
_SPECIAL = "<|"


@dataclass(frozen=True)
class Templates:
    """Lists of sentences, of which each turn draws one. ``{}`` stands for the words of the turn.

    Attributes:
        image_query: asks for the mask of something named in a photo.
        video_query: asks for the masks of something named in a clip.
        sentence: adds the wish for a mask to a whole sentence or question.
        question: adds the wish for a short answer and a mask to a question.
        explanatory: adds the wish for a mask and then an explanation to a question.
        description: asks for the masks of something that is described at length.
        answer: gives a mask and says nothing else; holds ``<|seg|>`` and no ``{}``.
        caption: asks for a short description of a point or box.
        describe: asks for a long description of an object, which is named by its number in brackets.
        locate: asks for the masks of the numbered objects of a question.

    Raises:
        UserError: a list is empty or holds something other than text, or a sentence does not have the one field of its kind.
    """

    image_query: tuple[str, ...] = IMAGE_QUERIES
    video_query: tuple[str, ...] = VIDEO_QUERIES
    sentence: tuple[str, ...] = SENTENCES
    question: tuple[str, ...] = QUESTIONS
    explanatory: tuple[str, ...] = EXPLANATIONS
    description: tuple[str, ...] = DESCRIPTIONS
    answer: tuple[str, ...] = ANSWERS
    caption: tuple[str, ...] = CAPTION_PROMPTS
    describe: tuple[str, ...] = DESCRIBE_PROMPTS
    locate: tuple[str, ...] = LOCATE_PROMPTS

    def __post_init__(self) -> None:
        for field in fields(self):
            _check(field.name, getattr(self, field.name))

    def digest(self) -> str:
        """Return a checksum of all sentences in their order: what is drawn of a sample is the same only where it is."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:16]


def read_templates(path: str | Path) -> Templates:
    """Return the sentences of a JSON file: an object whose keys are fields of ``Templates``. Lists that it does not name are the project's own.

    Raises:
        UserError: the file cannot be read, names an unknown list, or holds a list that ``Templates`` refuses.
    """
    found = read_json_object(path, _ADVICE)
    known = [field.name for field in fields(Templates)]
    for name, sentences in found.items():
        if name not in known:
            raise UserError(f"{path} names a list {name[:60]!r}, expected some of {', '.join(known)}")
        if not isinstance(sentences, list):
            raise UserError(f"{path}: {name} is {str(sentences)[:60]!r}, expected a list of sentences")
    try:
        return Templates(**{name: tuple(sentences) for name, sentences in found.items()})
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def pick(sentences: Sequence[str], rng: np.random.Generator) -> str:
    """Draw one of the sentences, each as likely."""
    return sentences[int(rng.integers(len(sentences)))]


def _check(name: str, sentences: Sequence[object]) -> None:
    if not sentences:
        raise UserError(f"the list {name} is empty: give at least one sentence, or leave the list out")
    for sentence in sentences:
        if not isinstance(sentence, str):
            raise UserError(f"{name} holds {str(sentence)[:60]!r}, expected text")
        if name == "answer":
            if sentence.count(_SPECIAL) != 1 or SEG_TOKEN not in sentence:
                raise UserError(f"the answer {sentence[:80]!r} cannot be used: expected {SEG_TOKEN} once, and no other special token")
        elif _fields(sentence) != [""] or _SPECIAL in sentence:
            raise UserError(
                f"{name} holds {sentence[:80]!r}, expected {{}} once in the place of what is asked for (braces that are meant as such are written twice), "
                "no other field, and no special token"
            )


def _fields(sentence: str) -> list[str]:
    """What stands between the braces of a sentence; something other than [""] where that is no plain ``{}``."""
    try:
        parts = [(name, spec, conversion) for _, name, spec, conversion in string.Formatter().parse(sentence) if name is not None]
    except ValueError:  # a brace without its partner
        return []
    return [f"{name}{spec}{conversion or ''}" for name, spec, conversion in parts]


OWN = Templates()
"""The project's own sentences."""
