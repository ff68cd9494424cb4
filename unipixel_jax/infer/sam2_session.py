"""A clip that is held in memory and annotated with SAM 2.1: prompts on any frame, in any order, and tracking forward and backward between them.

S side of the model's square image, H and W height and width of the frames. Source: facebookresearch/sam2, sam2/sam2_video_predictor.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from unipixel_jax.errors import UserError
from unipixel_jax.infer.prediction import FrameResult
from unipixel_jax.infer.segmentation import encoded
from unipixel_jax.infer.stream import frame_result
from unipixel_jax.infer.tracking import ObjectOutput, Tracker
from unipixel_jax.models.sam2.neck import FrameFeatures
from unipixel_jax.models.sam2.track_state import BACKWARD, FORWARD
from unipixel_jax.models.sam2.tracker import Sam2
from unipixel_jax.processing.frames import Frame
from unipixel_jax.processing.media import Clip
from unipixel_jax.processing.square import square_frames

KEPT = 128
"""Tracked frames whose memory is kept at most. In a longer clip, tracking back over frames that were left more than these ago starts with what prompts say."""


class Sam2Session:
    """Objects in a clip.

    Attributes:
        clip: the frames.
    """

    def __init__(self, sam2: Sam2, dtype: jnp.dtype, clip: Clip, *, non_overlapping: bool = False, fill_holes: int = 0) -> None:
        """Start without objects.

        Args:
            sam2: the weights.
            dtype: compute dtype.
            clip: the frames.
            non_overlapping: whether masks exclude each other, see ``frame_result``.
            fill_holes: see ``frame_result``.
        """
        count = len(clip.frames)
        self.clip = clip
        self._sam2, self._dtype = sam2, dtype
        self._tracker = Tracker(sam2, dtype, clip_length=count, recent=min(count, KEPT))
        self._shown = partial(frame_result, tracker=self._tracker, non_overlapping=non_overlapping, fill_holes=fill_holes)
        self._outputs: dict[int, dict[int, ObjectOutput]] = {}
        self._tracked: dict[int, dict[int, int]] = {}
        self._features: tuple[int, FrameFeatures] | None = None

    @property
    def objects(self) -> tuple[int, ...]:
        """The numbers of the objects, from 1 on in the order of their coming."""
        return tuple(self._tracker.objects)

    def add(
        self,
        frame: int,
        number: int | None = None,
        *,
        points: Sequence[tuple[float, float]] = (),
        labels: Sequence[int] | None = None,
        box: Sequence[float] | None = None,
        mask: NDArray[np.bool_] | None = None,
    ) -> FrameResult:
        """Prompt an object on a frame. On a frame to which the object was tracked, the prompt corrects it.

        Args:
            frame: the frame's number.
            number: the object; None for a new one, whose number is the last of the result's ``objects``.
            points: (x, y) in pixels; they replace earlier points on this frame.
            labels: 1 for a point on the object, 0 for one beside it; None for all on it.
            box: x0, y0, x1, y1 in pixels.
            mask: bool [H, W], taken as it is, in place of points and a box.

        Returns:
            What is known of all objects on this frame.

        Raises:
            UserError: no such frame or object, points outside the frame, a mask of another size, or nothing given.
        """
        shown = self._frame(frame)
        direction = FORWARD if number is None else self._tracked.get(number, {}).get(frame, FORWARD)
        self._go(frame, direction)
        self._tracker.add(shown.pixels.shape[:2], number, points=points, labels=labels, box=box, mask=mask)
        return self._result(shown)

    def propagate(self, start: int | None = None, *, backward: bool = False, frames: int | None = None) -> Iterator[FrameResult]:
        """Track all objects from frame to frame. On frames where an object was prompted, it stays as it is.

        Args:
            start: the first frame; None for the first that was prompted.
            backward: go to earlier frames rather than to later ones.
            frames: how many frames to visit at most; None goes to the end of the clip, or to its beginning.

        Yields:
            The result of each frame.

        Raises:
            UserError: there are no objects, or no such frame.
        """
        if not self.objects:
            raise UserError("there is nothing to track: add an object first")
        start = min(map(self._tracker.first_frame, self.objects)) if start is None else start
        self._frame(start)
        direction = BACKWARD if backward else FORWARD
        order = range(start, -1, -1) if backward else range(start, len(self.clip.frames))
        for number in order[:frames]:
            self._go(number, direction)
            self._tracker.step()
            for one in self.objects:
                self._tracked.setdefault(one, {})[number] = direction
            yield self._result(self._frame(number))

    def remove(self, number: int) -> None:
        """Forget an object.

        Raises:
            UserError: no such object.
        """
        self._tracker.remove(number)
        self._tracked.pop(number, None)
        for outputs in self._outputs.values():
            outputs.pop(number, None)

    def _frame(self, number: int) -> Frame:
        if not 0 <= number < len(self.clip.frames):
            raise UserError(f"there is no frame {number}: expected 0 to {len(self.clip.frames) - 1}")
        return Frame(number, None, self.clip.frames[number])

    def _go(self, number: int, direction: int) -> None:
        """Show the tracker a frame, of which the features of the last one visited are kept."""
        if self._features is None or self._features[0] != number:
            square = square_frames(self.clip.frames[number][None], self._sam2.config.image_size)
            (features,) = encoded(self._sam2, square, self._dtype, size=1)
            self._features = number, features
        tracked = [one for one in self.objects if number in self._tracked.get(one, {})]
        self._tracker.observe(number, self._features[1], direction, self._outputs.get(number, {}), tracked)

    def _result(self, frame: Frame) -> FrameResult:
        outputs = ((number, self._tracker.output(number)) for number in self.objects)
        self._outputs[frame.number] = {number: out for number, out in outputs if out is not None}
        return self._shown(frame)
