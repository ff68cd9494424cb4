"""A sample before any of its files is read (``Annotation``), and after it is drawn (``Example``).

A source (data/sources/) lists ``Annotation``s. Drawing one (data/draw.py) chooses frames, turns and words at random, reads pixels and masks, and gives
an ``Example``, which data/assemble.py turns into arrays.

O objects, F frames, H and W height and width in pixels, S side of SAM's square.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from unipixel_jax.errors import UserError
from unipixel_jax.processing.media import Clip, Content
from unipixel_jax.processing.prompts import SquareReference
from unipixel_jax.processing.tokenizer import Message

Task = Literal["segmentation", "referring", "region", "memory", "multimodal", "shapes"]
"""What a sample teaches; data/tasks/ has one file for each."""


class MaskReader(Protocol):
    """A reader of the masks of a turn's objects. It keeps where they are and reads them only when the sample is drawn, so it is small and can be pickled."""

    def read(self, frames: Sequence[int], size: tuple[int, int]) -> NDArray[np.bool_]:
        """Read the masks of some frames.

        Args:
            frames: the frames' numbers among those of the media that count.
            size: height and width of the frames in pixels.

        Returns:
            bool [O, len(frames), *size].

        Raises:
            UserError: a file is missing or broken, or a mask is of another size and must not be.
        """


@dataclass(frozen=True)
class FrameFiles:
    """Frames that are image files; a photo has one.

    Attributes:
        paths: the files in order, as paths or as their contents.
        take_all: take every frame without sampling, however many there are.
    """

    paths: tuple[str | Content, ...]
    take_all: bool = False


@dataclass(frozen=True)
class VideoFrames:
    """Frames of a video file or of a folder.

    Attributes:
        path: the file or folder, or the content of the file, or of each frame in the folder.
        keep: the frames that count, by their numbers in the video; None for all.
        stride: 2 counts every second frame, and so on; only without ``keep``.
        anchor: a frame that must be among those taken (as numbered after ``keep`` and ``stride``), None for none.
    """

    path: str | Content | tuple[Content, ...]
    keep: tuple[int, ...] | None = None
    stride: int = 1
    anchor: int | None = None


@dataclass(frozen=True)
class Photo:
    """An image that the language side sees as an image (``<|image_pad|>``) rather than as a clip of one frame; only multimodal samples do."""

    path: str | Content


@dataclass(frozen=True)
class Turn:
    """One question and its answer.

    Attributes:
        kind: how the words become a conversation; each task lists the kinds it knows.
        text: the words or name that the question is about, or the whole question.
        answer: the answer, where it is not one of the stock answers.
        masks: the masks of the objects that the turn segments, points at or remembers; None for none.
        ids: the numbers by which the words speak of those objects, in the order of ``masks``, where they do.
    """

    kind: str
    text: str
    answer: str = ""
    masks: MaskReader | None = None
    ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Annotation:
    """One sample of a source.

    Attributes:
        source: the source's name.
        data_type: samples of one global batch share it, for example "seg_image" or "ref_point".
        task: see ``Task``.
        media: what the sample shows; None for words alone.
        turns: the questions and answers, of which at most ``DrawOptions.max_turns`` are drawn.
        name: says which sample this is, in reports of failures.
    """

    source: str
    data_type: str
    task: Task
    media: FrameFiles | VideoFrames | Photo | None
    turns: tuple[Turn, ...]
    name: str


def require_text(annotation: Annotation) -> None:
    """Check that the words of an annotation, which come from a file, are text that can be encoded.

    Raises:
        UserError: they are something else, or text with half a character (an unpaired surrogate), which no encoding has.
    """
    for turn in annotation.turns:
        for words in (turn.text, turn.answer):
            try:
                words.encode("utf-8")
            except (AttributeError, UnicodeEncodeError):
                raise UserError(f"{annotation.name} has the words {str(words)[:60]!r}, expected text in Unicode with whole characters") from None


@dataclass(frozen=True)
class DrawOptions:
    """How samples are drawn; the fields' names in the reference's ``DataArguments`` are given where they differ.

    Attributes:
        sample_frames: the fewest and the most frames to take of a clip; where both are equal, exactly that many are taken of a longer clip.
        sample_type: "uniform", or "random" for one frame from each of equal segments.
        max_turns: turns of a conversation at most (``max_conv_turns``).
        max_objects: objects of a sample at most, None for no limit (``max_num_objects``); a sample with more is refused.
        image_size: S, in pixels.
        sample_for_llm_only: whether the language model alone sees the sampled frames, while SAM sees, and learns on, every frame of the clip that counts.
    """

    sample_frames: tuple[int, int] = (8, 8)
    sample_type: Literal["uniform", "random"] = "random"
    max_turns: int = 3
    max_objects: int | None = None
    image_size: int = 768
    sample_for_llm_only: bool = False


@dataclass(frozen=True)
class Example:
    """A drawn sample: everything random is decided, pixels and masks are read.

    Attributes:
        annotation: what it was drawn from.
        messages: the conversation, with ``{"type": "video"}`` (or ``{"type": "image"}`` for a ``Photo``) where the media stands.
        clip: the chosen frames; None for words alone.
        masks: the masks of the objects to segment, in the order of the ``<|seg|>`` tokens: bool [O, F, S, S]; None where SAM has nothing to do.
        tracked: the F frames that SAM sees, where they are not those of ``clip``.
        references: points and boxes in the order of the ``<|ref|>`` tokens.
        memory: the masks of the objects that the prompt lists with ``<|mem|>`` tokens: bool [O, F, H, W]; None for none.
        seconds_per_frame: seconds between two frames of a clip, as the rotary positions take them.
        sample_frames: frames at most taken from any clip of this kind, which sets the language side's pixel budget of each frame (processing/resize.py).
    """

    annotation: Annotation
    messages: tuple[Message, ...]
    clip: Clip | None
    masks: NDArray[np.bool_] | None = None
    tracked: Clip | None = None
    references: tuple[SquareReference, ...] = ()
    memory: NDArray[np.bool_] | None = None
    seconds_per_frame: float = 0.5
    sample_frames: int = 8


class Source(Protocol):
    """A list of samples. It can be pickled at little cost, since worker processes get a copy."""

    @property
    def name(self) -> str:
        """The name by which the source is opened."""

    def __len__(self) -> int:
        """How many samples there are after filtering."""

    def __getitem__(self, index: int) -> Annotation:
        """The sample with this number, from 0 on."""

    @property
    def data_types(self) -> Sequence[str]:
        """The ``data_type`` of every sample, without building it."""
