"""Shared by the sources of marked objects: points for one half of the samples and boxes for the other, and questions with an option."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from unipixel_jax.data.annotation import Annotation, MaskReader, Turn
from unipixel_jax.processing.tokenizer import SEG_TOKEN

T = TypeVar("T")


def points_and_boxes(annotations: Sequence[Annotation]) -> list[Annotation]:
    """The annotations with "point" for ``{}`` in the ``data_type`` of one half, and "box" in that of the other; the source's name decides which is which.

    The reference draws the half anew in each run; here every process, and every run, has the same one.
    """
    if not annotations:
        return []
    order = np.random.default_rng(zlib.crc32(annotations[0].source.encode())).permutation(len(annotations))
    points = set(order[: len(annotations) // 2].tolist())
    return [replace(a, data_type=a.data_type.format("point" if i in points else "box")) for i, a in enumerate(annotations)]


def choose_stable(choices: Sequence[T], name: str) -> T:
    """One of the choices, the same in every run for the same name."""
    return choices[zlib.crc32(name.encode()) % len(choices)]


def with_option(question: str, answer: str, name: str) -> str:
    """A question followed by its answer as the only option, under a letter that ``name`` decides. Memory samples ask where the objects of both are."""
    return f"{question}\nOptions:\n({choose_stable('ABCD', name)}) {answer}"


def locate_turn(question: str, ids: Sequence[int], masks: MaskReader) -> Turn:
    """The turn that asks for the masks of the numbered objects of a question, in which ``<|ref|>`` follows the first mention of each."""
    return Turn("locate", question, " ".join(f"[{number}] {SEG_TOKEN}" for number in ids), masks, tuple(ids))
