"""Points, boxes and masks with which a user refers to objects, and the words with which a question speaks of them.

R references, F frames, H height, W width. Coordinates given by users are pixels of the media; the model's are pixels of SAM's square. Source: UniPixel's
``unipixel/eval/infer_pixelqa.py``, ``unipixel/dataset/sub_classes/referring.py`` and SAM 2's prompt encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from unipixel_jax.batch import References
from unipixel_jax.core.buckets import Buckets
from unipixel_jax.errors import UserError
from unipixel_jax.processing.tokenizer import REF_TOKEN, SEG_TOKEN

REGION = "<region>"
"""The text that stands for the next reference in a question; ``<|ref|>`` is understood as well."""

_TURN_TOKENS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
_POINT, _NOTHING, _CORNERS = 1, -1, (2, 3)


@dataclass(frozen=True)
class Point:
    """A point in an image: pixels from the left and from the top, and the frame (counted among the frames that were taken of a clip). A point outside the
    image is refused with a UserError when it is used.
    """

    x: float
    y: float
    frame: int = 0


@dataclass(frozen=True)
class Box:
    """A rectangle in an image: left, top, right and bottom in pixels, and the frame (counted among the frames that were taken of a clip). A box that reaches
    outside the image is refused with a UserError when it is used.
    """

    x0: float
    y0: float
    x1: float
    y1: float
    frame: int = 0


@dataclass(frozen=True, eq=False)
class Mask:
    """The pixels of an object: bool [F, H, W] for a whole clip, or [H, W] on one ``frame`` (counted among the frames that were taken of a clip)."""

    array: NDArray[np.bool_]
    frame: int = 0

    def on_clip(self, frames: int, height: int, width: int) -> NDArray[np.bool_]:
        """The mask on every frame of a clip, bool [F, H, W].

        Raises:
            UserError: the mask is of another size, empty, not boolean, or on a frame that the clip does not have.
        """
        array = np.asarray(self.array)
        if array.dtype != np.bool_ or array.shape not in ((height, width), (frames, height, width)):
            found = f"{array.dtype} {list(array.shape)}"
            raise UserError(f"the mask is {found}, expected bool {[height, width]} or {[frames, height, width]} as the media has it")
        if not array.any():
            raise UserError("the mask is empty: mark at least one pixel of the object")
        if array.ndim == 3:
            return array
        _check_frame(self.frame, frames)
        out = np.zeros((frames, height, width), bool)
        out[self.frame] = array
        return out


@dataclass(frozen=True, eq=False)
class Clicks:
    """What a user marked of one object on one frame, for SAM 2.1 alone, without words.

    Attributes:
        on: points (x, y) on the object, in pixels from the left and from the top.
        off: points beside it.
        box: left, top, right and bottom in pixels; what reaches beyond the picture is cut off.
        brush: a stroke along the object, bool [H, W].
        mask: what is known of the object's mask, bool [H, W], which points and a box correct.
        frame: the number of the frame in its clip; 0 for a picture.
        number: the object's number, from 1 on; None where each ``Clicks`` stands for an object of its own.
    """

    on: Sequence[tuple[float, float]] = ()
    off: Sequence[tuple[float, float]] = ()
    box: tuple[float, float, float, float] | None = None
    brush: NDArray[np.bool_] | None = None
    mask: NDArray[np.bool_] | None = None
    frame: int = 0
    number: int | None = None

    def __bool__(self) -> bool:
        return bool(self.on or self.off or self.box or self.brush is not None or self.mask is not None)


@dataclass(frozen=True)
class SquareReference:
    """A point or a box as the model takes it.

    Attributes:
        coords: the point [1, 2], or the box's two corners [2, 2], x before y, in pixels of SAM's square, float32.
        frame: the frame that it lies on.
    """

    coords: NDArray[np.float32]
    frame: int


Reference: TypeAlias = Point | Box


def numbered(clicks: Sequence[Clicks]) -> list[Clicks]:
    """Clicks with the numbers of their objects, which are 1, 2, ... without gaps.

    Raises:
        UserError: only some of them have numbers, numbers are left out, an object is marked twice on a frame, or nothing says where it is.
    """
    for place, one in enumerate(clicks, start=1):
        if not (one.on or one.box or one.brush is not None or one.mask is not None):
            what = "points beside an object alone" if one.off else "nothing"
            raise UserError(f"clicks {place} hold {what}: give a point on the object, a box around it, a brush stroke along it, or its mask")
    given = [one.number for one in clicks]
    known = {number for number in given if number is not None}
    if not known:
        return [replace(one, number=number) for number, one in enumerate(clicks, start=1)]
    if None in given or known != set(range(1, len(known) + 1)):
        shown = ", ".join("none" if number is None else str(number) for number in given)
        raise UserError(f"the numbers of the objects that are clicked on are {shown}: expected 1, 2, ... without gaps, or none at all")
    marked: set[tuple[int | None, int]] = set()
    for one in clicks:
        if (one.number, one.frame) in marked:
            raise UserError(f"object {one.number} is clicked on twice on frame {one.frame}: put all that marks it there into one")
        marked.add((one.number, one.frame))
    return list(clicks)


def require_words(text: str) -> None:
    """Check that a prompt or question says something, in text that can be encoded.

    Raises:
        UserError: it is empty, or was made of bytes that are not UTF-8.
    """
    if not text.strip():
        raise UserError("the prompt is empty: say what to look for, for example 'Please segment the dog.'")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the prompt {text!r} is not UTF-8 (at character {error.start + 1}): write it in UTF-8") from None


def require_answer_start(text: str) -> None:
    """Check the words with which an answer has to begin; none are well.

    Raises:
        UserError: they are blank, not UTF-8, or hold a token that ends the turn.
    """
    if not text:
        return
    if not text.strip():
        raise UserError(f"the start of the answer is {text!r}: give words, or leave it out")
    require_words(text)
    if any(token in text for token in _TURN_TOKENS):
        raise UserError(f"the start of the answer {text!r} holds one of {', '.join(_TURN_TOKENS)}, which begin and end turns: leave them out")


def to_square(reference: Reference, frames: int, height: int, width: int, side: int) -> SquareReference:
    """Scale a user's point or box to SAM's square.

    Args:
        reference: in pixels of the media.
        frames: frames of the clip.
        height: height of the media in pixels.
        width: width of the media in pixels.
        side: side of SAM's square in pixels.

    Raises:
        UserError: the reference lies outside the image or the clip, or is a box without area.
    """
    if isinstance(reference, Box):
        corners = [(reference.x0, reference.y0), (reference.x1, reference.y1)]
        if not (reference.x0 < reference.x1 and reference.y0 < reference.y1):
            raise UserError(f"{reference} has no area, expected x0 < x1 and y0 < y1")
    else:
        corners = [(reference.x, reference.y)]
    if not all(0 <= x <= width and 0 <= y <= height for x, y in corners):
        raise UserError(f"{reference} lies outside the image, expected 0 <= x <= {width} and 0 <= y <= {height} in pixels")
    _check_frame(reference.frame, frames)
    scale = np.array([side / width, side / height])
    return SquareReference((np.array(corners) * scale).astype(np.float32), reference.frame)


def reference_table(references: Sequence[tuple[SquareReference, int]], buckets: Buckets) -> References:
    """Make the padded table of references, whose shapes stand in ``unipixel_jax/batch.py``.

    Args:
        references: each reference, with the number of frames that its clip's grid has room for (twice the grid's length in time).
        buckets: the sizes of the table.

    Raises:
        UserError: there are more references than the buckets allow.
    """
    size = buckets.size(len(references))
    table = References(
        np.zeros((size, 3, 2), np.float32),
        np.full((size, 3), _NOTHING, np.int32),
        np.zeros(size, bool),
        np.zeros(size, np.float32),
        np.ones(size, np.float32),
    )
    for row, (reference, room) in enumerate(references):
        count = len(reference.coords)
        table.coords[row, :count] = reference.coords
        table.labels[row, :count] = _CORNERS if count == 2 else _POINT
        table.is_box[row] = count == 2
        table.frames[row] = reference.frame
        table.spans[row] = room - 1
    return table


def name_regions(question: str, names: Sequence[str]) -> str:
    """Write the names of the references into a question: at each ``<region>`` in turn, or in front where the question has none.

    Raises:
        UserError: the question has ``<region>``, but not one for each reference.
    """
    pieces = question.replace(REF_TOKEN, REGION).split(REGION)
    if len(pieces) == 1:
        return f"{', '.join(names)}: {question}" if names else question
    if len(pieces) - 1 != len(names):
        raise UserError(f"the question has {len(pieces) - 1} {REGION} for {len(names)} points, boxes or masks: expected one each, or none")
    return pieces[0] + "".join(name + piece for name, piece in zip(names, pieces[1:], strict=True))


def locating_turn(question: str, references: int) -> tuple[str, str]:
    """PixelQA's first turn: a question that asks where the objects are, and an answer with one ``<|seg|>`` for each of the ``references`` objects."""
    text = name_regions(question, [f"[{i}] {REF_TOKEN}" for i in range(references)])
    return f"{text}. Please localize the relevant objects with IDs.", " ".join(f"[{i}] {SEG_TOKEN}" for i in range(references))


def _check_frame(frame: int, frames: int) -> None:
    if not isinstance(frame, int | np.integer) or not 0 <= frame < frames:
        raise UserError(f"frame {frame} is not in the clip, expected 0 to {frames - 1}, counted among the frames that were taken")
