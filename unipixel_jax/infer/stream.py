"""A clip that is tracked frame by frame, while its user adds, corrects and removes objects.

O objects, H hidden tokens of an object, S side of SAM's square image, D language width.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unipixel_jax.config import UNKNOWN_LENGTH
from unipixel_jax.errors import UserError
from unipixel_jax.infer.loading import LoadedModel
from unipixel_jax.infer.masks import resize_masks, sigmoid
from unipixel_jax.infer.prediction import Answer, ClipAnswer, FrameResult
from unipixel_jax.infer.segmentation import encoded, hidden_tokens
from unipixel_jax.infer.tracking import Tracker
from unipixel_jax.models.sam2.neck import FrameFeatures
from unipixel_jax.processing.frames import Frame, FrameSource
from unipixel_jax.processing.square import square_frames

T = TypeVar("T")
_DECODED_AHEAD = 4
"""Frames that are decoded and resized before they are asked for."""


class Stream:
    """The results of a clip's frames, one after the other: iterate over it.

    Between two frames, ``prompt`` adds objects by words, ``correct`` mends one by points, a box or a mask, and ``remove`` forgets one; each acts on the frame
    whose result came last. What is kept has a fixed size, whatever the length of the clip.

    Attributes:
        answer: the answer with which the stream began.
    """

    def __init__(self, loaded: LoadedModel, ask: Callable[[NDArray[np.uint8], str], Answer], source: FrameSource, answer: ClipAnswer) -> None:
        """Start before the first frame.

        Args:
            loaded: the model that tracks.
            ask: a function that answers a prompt about a frame [H, W, 3].
            source: the frames.
            answer: the answer whose objects are followed.
        """
        self.answer = answer
        self._loaded, self._ask = loaded, ask
        length = UNKNOWN_LENGTH if source.count is None else len(source)
        alone = source.is_image or length == 1 or loaded.config.sam2_batch_mode
        self._tracker = Tracker(self._loaded.model.sam2, self._loaded.dtype, clip_length=length, alone=alone)
        self._waiting: NDArray[np.floating] | None = answer.hidden if len(answer.hidden) else None
        self._source = source
        self._frames = frames_with_features(self._loaded, source)
        self._now: Frame | None = None
        # Memories tell time by the frames that are tracked, whose numbers in the clip have gaps where it is sampled.
        self._place = 0

    def __iter__(self) -> Iterator[FrameResult]:
        return self

    def __next__(self) -> FrameResult:
        with self._loaded.on_mesh():
            self._now, features = next(self._frames)
            self._tracker.observe(self._place, features)
            self._place += 1
            if self._waiting is not None:
                self._tracker.add_words(hidden_tokens(self._loaded.model, self._waiting, self._loaded.dtype))
                self._waiting = None
            self._tracker.step()
        return self.result

    @property
    def objects(self) -> tuple[int, ...]:
        """The numbers of the objects that are followed, from 1 on in the order of their coming."""
        return tuple(self._tracker.objects)

    @property
    def result(self) -> FrameResult:
        """What is known of the frame whose result came last, corrections included.

        Raises:
            UserError: no frame has come yet.
        """
        return frame_result(self._frame(), self._tracker)

    def prompt(self, words: str) -> tuple[str, list[int]]:
        """Ask about the frame whose result came last, and follow what the answer segments from here on.

        Args:
            words: the prompt, for example "Please segment the dog."

        Returns:
            The answer's text, and the numbers of the new objects.

        Raises:
            UserError: no frame has come yet, an empty prompt, or too many objects.
        """
        answer = self._ask(self._frame().pixels, words)
        with self._loaded.on_mesh():
            found = self._tracker.add_words(hidden_tokens(self._loaded.model, answer.hidden, self._loaded.dtype)) if len(answer.hidden) else []
        return answer.text, found

    def correct(
        self,
        number: int | None,
        *,
        points: Sequence[tuple[float, float]] = (),
        labels: Sequence[int] | None = None,
        box: Sequence[float] | None = None,
        mask: NDArray[np.bool_] | None = None,
    ) -> FrameResult:
        """Mend an object's mask on the frame whose result came last, or add an object without words.

        Args:
            number: the object; None for a new one.
            points: (x, y) in pixels; they replace earlier points on this frame.
            labels: 1 for a point on the object, 0 for one beside it; None for all on it.
            box: x0, y0, x1, y1 in pixels.
            mask: bool [height, width], taken as it is, in place of points and a box.

        Returns:
            The frame's result after the correction.

        Raises:
            UserError: no frame has come yet, no such object, points outside the frame, a mask of another size, or nothing given.
        """
        size = self._frame().pixels.shape[:2]
        with self._loaded.on_mesh():
            self._tracker.add(size, number, points=points, labels=labels, box=box, mask=mask)
        return self.result

    def remove(self, number: int) -> None:
        """Forget an object.

        Raises:
            UserError: no such object.
        """
        with self._loaded.on_mesh():
            self._tracker.remove(number)

    def save(self) -> dict[str, ArrayLike]:
        """What the frames after this one depend on, for ``resume``, with the number of the next frame as ``next_frame``. It copies nothing."""
        return self._tracker.save() | {"next_frame": np.asarray(self._frame().number + 1)}

    def resume(self, saved: dict[str, NDArray[np.generic]]) -> None:
        """Go on from what ``save`` returned: the frames before are skipped.

        Raises:
            UserError: it does not fit this model.
        """
        with self._loaded.on_mesh():
            self._tracker.restore(saved)
        self._place = int(saved["frame"]) + 1
        self._frames = frames_with_features(self._loaded, replace(self._source, first=int(saved["next_frame"])))
        self._waiting = None

    def close(self) -> None:
        """Stop reading the clip."""
        self._frames.close()

    def _frame(self) -> Frame:
        if self._now is None:
            raise UserError("no frame has come yet: take the first result of the stream before you change its objects")
        return self._now


def frame_result(frame: Frame, tracker: Tracker, non_overlapping: bool = False, fill_holes: int = 0) -> FrameResult:
    """What a tracker knows of the frame at which it is.

    Args:
        frame: the frame.
        tracker: the objects.
        non_overlapping: whether each pixel belongs to the object with the highest logit only (reference: _apply_non_overlapping_constraints in
            sam2/modeling/sam2_base.py).
        fill_holes: the largest number of pixels of a hole in a mask of a quarter of SAM's side that is filled (reference: fill_holes_in_mask_scores in
            sam2/utils/misc.py); 0 fills none.
    """
    size = frame.pixels.shape[:2]
    known = [(number, out) for number in tracker.objects if (out := tracker.output(number)) is not None]
    logits = [resize_masks(filled(out.low_res, fill_holes), size) for _, out in known]
    masks = np.stack(logits) > 0 if logits else np.zeros((0, *size), bool)
    if non_overlapping and len(logits) > 1:
        masks &= np.argmax(logits, axis=0) == np.arange(len(logits))[:, None, None]
    presence = sigmoid(np.asarray([out.presence for _, out in known], np.float32))
    iou = np.asarray([out.iou for _, out in known], np.float32)
    return FrameResult(frame.number, frame.seconds, frame.pixels, tuple(number for number, _ in known), masks, presence * iou, presence)


def filled(low_res: NDArray[np.float32], most: int) -> NDArray[np.float32]:
    """Logits [h, w] in which holes of at most ``most`` pixels, neighbours across corners included, belong to the mask."""
    if most < 1:
        return low_res
    from scipy import ndimage  # its import would slow down those who fill no holes

    labels, _ = ndimage.label(low_res <= 0, structure=np.ones((3, 3)))
    holes = (np.bincount(labels.ravel())[labels] <= most) & (labels > 0)
    return np.where(holes, np.float32(0.1), low_res)


def frames_with_features(loaded: LoadedModel, source: FrameSource) -> Generator[tuple[Frame, FrameFeatures], None, None]:
    """Each frame with its features. Frames of a file are decoded and resized on another thread before they are asked for; a live stream's as they come."""
    live, side = source.count is None, loaded.config.sam2.image_size
    read = ((frame, square_frames(frame.pixels[None], side)[0]) for frame in source)
    frames = deque[Frame]()

    def squares() -> Iterator[NDArray[np.floating]]:
        for frame, square in read if live else _in_advance(read):
            frames.append(frame)
            yield square

    for features in encoded(loaded.model.sam2, squares(), loaded.dtype, size=1 if live or source.is_image else None, ahead=not live):
        yield frames.popleft(), features


def _in_advance(items: Iterator[T]) -> Iterator[T]:
    """The items, of which the next few are made on a thread."""
    end = object()
    with ThreadPoolExecutor(1) as pool:
        queue = deque(pool.submit(next, items, end) for _ in range(_DECODED_AHEAD))
        while (item := queue.popleft().result()) is not end:
            queue.append(pool.submit(next, items, end))
            yield cast(T, item)
