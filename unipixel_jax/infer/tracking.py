"""Objects followed frame by frame: the tracker's state on the device, and on the host which of its columns belongs to which object.

O objects, S side of SAM's square image, g = S / 16 side of its feature grid, D width, H and W height and width of the media.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from unipixel_jax.config import UNKNOWN_LENGTH
from unipixel_jax.core.buckets import BUCKETS
from unipixel_jax.core.programs import Programs, packed
from unipixel_jax.errors import UserError
from unipixel_jax.models.sam2.neck import FrameFeatures
from unipixel_jax.models.sam2.track_state import FORWARD, TrackState
from unipixel_jax.models.sam2.tracker import Prompt, Sam2, TrackOutput
from unipixel_jax.processing.resize import bilinear_weights

CONDITIONING = 4
"""Prompted frames that an object remembers. Of more, those farthest from the frame that is prompted are given up."""
MAX_OBJECTS = 256
"""Objects that are followed at once, at most."""
POINTS = 8
"""Points of a prompt are padded to a multiple of this, so that few programs are compiled."""
MAX_POINTS = 1024
"""Points of a prompt at most."""
LOGITS = 32.0
"""The largest size of a logit of a mask that is given back to the mask decoder to be corrected (reference: add_new_points_or_box)."""


@dataclass(frozen=True)
class ObjectOutput:
    """What is known of one object on one frame.

    Attributes:
        low_res: [4g, 4g] float32 logits of its mask; -1024 where it is not in the frame.
        iou: predicted intersection over union of the mask.
        presence: the logit of the object's being in the frame.
    """

    low_res: NDArray[np.float32]
    iou: float
    presence: float


class Tracker:
    """Follows objects through frames that ``observe`` shows one after the other, in either direction.

    Its state has a fixed size for a number of objects, which grows by the buckets of ``core/buckets.py``. An object that is prompted on a frame is found there
    without memory; one that was tracked to the frame is corrected.

    Attributes:
        objects: the numbers of the objects, from 1 on in the order of their coming, without those that were removed.
    """

    def __init__(self, sam2: Sam2, dtype: jnp.dtype, *, clip_length: int = UNKNOWN_LENGTH, recent: int = 0, alone: bool = False) -> None:
        """Start without objects.

        Args:
            sam2: the weights.
            dtype: compute dtype.
            clip_length: the number of frames that will come, where that is known.
            recent: how many tracked frames are kept, see ``TrackState.empty``.
            alone: whether words find their objects on every frame anew, without memory: on a photo, and with the reference's ``sam2_batch_mode``.
        """
        self.objects: list[int] = []
        self._sam2, self._packed, self._dtype = sam2, packed(sam2), dtype
        self._length, self._recent = clip_length, recent
        self._alone, self._words = alone, dict[int, NDArray[np.floating]]()
        self._capacity = 0
        self._state: TrackState | None = None
        self._rows: dict[int, int] = {}
        self._slots: dict[int, list[int | None]] = {}
        self._next = 1
        self._features: FrameFeatures | None = None
        self._frame, self._direction = 0, FORWARD
        self._tracked: set[int] = set()
        self._outputs: dict[int, ObjectOutput] = {}

    @property
    def state(self) -> TrackState | None:
        """What is remembered of all objects; None before the first."""
        return self._state

    def observe(
        self,
        frame: int,
        features: FrameFeatures,
        direction: int = FORWARD,
        known: Mapping[int, ObjectOutput] = MappingProxyType({}),
        tracked: Iterable[int] = (),
    ) -> None:
        """Go to a frame.

        Args:
            frame: its number.
            features: its features, each array [1, ...].
            direction: 1 or -1, the direction of time in which it is reached.
            known: what is known of objects on it already, by their numbers, where it was visited before.
            tracked: the objects that were tracked to it before, which further prompts correct.
        """
        self._frame, self._features, self._direction = frame, features, direction
        self._outputs, self._tracked = dict(known), set(tracked)

    def first_frame(self, number: int) -> int:
        """The first frame on which an object was prompted.

        Raises:
            UserError: no such object.
        """
        self._require(number)
        return min(frame for frame in self._slots[number] if frame is not None)

    def step(self) -> None:
        """Track all objects to this frame, but for those that were prompted on it."""
        self._find_by_words([number for number in self._words if number not in self._outputs])
        active = [number for number in self.objects if number not in self._words and self._frame not in self._slots[number]]
        if not active:
            return
        rows = np.zeros(self._capacity, bool)
        rows[[self._rows[number] for number in active]] = True
        self._state, low_res, iou, presence = _step(self._packed, self._here(), self._seen(), jax.device_put(rows))
        arrays = np.asarray(low_res), np.asarray(iou), np.asarray(presence)
        for number in active:
            row = self._rows[number]
            self._outputs[number] = ObjectOutput(arrays[0][row], float(arrays[1][row]), float(arrays[2][row]))
        self._tracked |= set(active)

    def output(self, number: int) -> ObjectOutput | None:
        """What is known of an object on this frame; None where it was neither tracked to it nor prompted on it."""
        return self._outputs.get(number)

    def add_words(self, tokens: NDArray[np.floating]) -> list[int]:
        """Find new objects on this frame by the hidden tokens of their words [O, H, D]; returns their numbers.

        Raises:
            UserError: more objects than ``MAX_OBJECTS``.
        """
        self._require_room(len(tokens))
        numbers = [self._new_object() for _ in tokens]
        if self._alone:
            self._words |= dict(zip(numbers, tokens, strict=True))
            self._find_by_words(numbers)
            return numbers
        for number, own in zip(numbers, tokens, strict=True):
            self._prompt(number, _words(self._packed, jax.device_put(own[None])), exact=False)
        return numbers

    def add(
        self,
        size: tuple[int, int],
        number: int | None = None,
        *,
        points: Sequence[tuple[float, float]] = (),
        labels: Sequence[int] | None = None,
        box: Sequence[float] | None = None,
        mask: NDArray[np.bool_] | None = None,
    ) -> int:
        """Find a new object on this frame by what a user gives, or correct one.

        Args:
            size: height and width of the media.
            number: the object that is corrected, or prompted on a further frame; None for a new one.
            points: (x, y) in pixels of the media; they replace earlier points on this frame.
            labels: 1 for a point on the object, 0 for one beside it; None for all on it.
            box: x0, y0, x1, y1 in pixels of the media.
            mask: bool [H, W], taken as it is, in place of points and a box.

        Returns:
            The object's number.

        Raises:
            UserError: no such object, points outside the frame, a mask of another size, nothing given, or too many points or objects.
        """
        if mask is not None:
            if len(points) or box is not None:
                raise UserError("a mask was given together with points or a box: give the mask, or points and a box")
            if mask.shape != size or mask.dtype != np.bool_:
                raise UserError(f"the mask is {mask.dtype} {list(mask.shape)}, expected bool {list(size)} as the frame has it")
            return self.add_mask(mask, number)
        if not len(points) and box is None:
            raise UserError("nothing to correct with, or to find an object by: give points, a box or a mask")
        corners = [] if box is None else [(box[0], box[1]), (box[2], box[3])]
        kinds = [1] * len(points) if labels is None else labels
        return self.add_points([*corners, *points], [*(2, 3)[: len(corners)], *kinds], size, number)

    def add_points(self, points: ArrayLike, labels: ArrayLike, size: tuple[int, int], number: int | None = None) -> int:
        """Find a new object on this frame by points, or correct one.

        Args:
            points: (x, y) in pixels of the media [P, 2].
            labels: [P]; 1 on the object, 0 beside it, 2 and 3 for the first two points that are the top left and bottom right corner of a box.
            size: height and width of the media.
            number: the object that is corrected, or prompted on a further frame; None for a new one.

        Returns:
            The object's number.

        Raises:
            UserError: no such object, or too many points or objects.
        """
        coords, kinds = self._points(points, labels, size)
        logits = None
        if number is None:
            number = self._new_object()
        else:
            self._require(number)
            known = self._outputs.get(number)
            logits = None if known is None else np.clip(known.low_res, -LOGITS, LOGITS)
        side = 4 * self._sam2.config.grid
        given = np.zeros((1, side, side), np.float32) if logits is None else logits[None]
        flags = jax.device_put((np.asarray([logits is not None]), np.asarray([len(np.asarray(labels)) > 1])))
        prompt = _points(self._packed, *jax.device_put((coords, kinds, given)), *flags)
        self._prompt(number, prompt, exact=True)
        return number

    def add_mask(self, mask: NDArray[np.bool_], number: int | None = None) -> int:
        """Take the mask of a new object on this frame, or of one that is known, as it is; bool [H, W]. Returns the object's number.

        Raises:
            UserError: no such object, or too many objects.
        """
        if number is None:
            number = self._new_object()
        self._require(number)
        side = self._sam2.config.image_size
        square = resized(mask.astype(np.float32), side) >= 0.5
        low_res = resized(square.astype(np.float32) * 20 - 10, side // 4)
        slot = self._slot(number)
        index, given = jnp.int32(self._rows[number]), jax.device_put(square[None].astype(np.float32))
        self._state, out = _prompt_mask(self._packed, self._here(), index, self._seen(), given, jax.device_put(low_res[None]), jnp.int32(slot))
        self._keep(number, out)
        return number

    def remove(self, number: int) -> None:
        """Forget an object; its place is free for another.

        Raises:
            UserError: no such object.
        """
        self._require(number)
        self._state = _clear(self._here(), jnp.int32(self._rows.pop(number)))
        self.objects.remove(number)
        del self._slots[number]
        self._outputs.pop(number, None)
        self._words.pop(number, None)

    def save(self) -> dict[str, ArrayLike]:
        """All that the next frames depend on, for ``restore``. It copies nothing: the state's arrays stay where they are and never change."""
        table = [[number, self._rows[number], *(-1 if frame is None else frame for frame in self._slots[number])] for number in self.objects]
        words = np.stack(list(self._words.values())) if self._words else np.zeros((0, 0, self._sam2.config.d_model), self._dtype)
        return {name: value for name, value in vars(self._here()).items() if name != "conditioning"} | {
            "objects": np.asarray(table, np.int64).reshape(len(table), 2 + CONDITIONING),
            "next": np.asarray(self._next),
            "words": words,
            "worded": np.asarray(list(self._words), np.int64),
        }

    def restore(self, saved: dict[str, NDArray[np.generic]]) -> None:
        """Go back to what ``save`` returned.

        Raises:
            UserError: it does not fit this model.
        """
        table, d = saved["objects"], self._sam2.config.d_model
        columns = saved["memory"].shape[1] if saved["memory"].ndim == 4 else 0
        if not len(table) <= columns <= BUCKETS.objects.size(MAX_OBJECTS):
            raise UserError(f"the saved state has {len(table)} objects in {columns} columns: start anew")
        self._capacity = columns
        wanted = self._empty()

        def read(name: str, shape: tuple[int, ...], dtype: np.dtype) -> NDArray[np.generic]:
            array = saved.get(name, np.zeros(0))
            if array.shape != shape or array.dtype != dtype:
                raise UserError(f"the saved state has {name} {array.dtype}{list(array.shape)}, expected {dtype}{list(shape)}: start anew")
            return array

        found = {name: jax.device_put(read(name, own.shape, own.dtype)) for name, own in vars(wanted).items() if name != "conditioning"}
        self._state = replace(wanted, **found)
        self.objects = [int(line[0]) for line in table]
        self._rows = {int(line[0]): int(line[1]) for line in table}
        self._slots = {int(line[0]): [None if frame < 0 else int(frame) for frame in line[2:]] for line in table}
        self._next = int(saved["next"])
        words = read("words", (len(saved["worded"]), saved["words"].shape[1], d), np.dtype(self._dtype))
        self._words = dict(zip(saved["worded"].tolist(), words, strict=True))

    def _prompt(self, number: int, prompt: Prompt, exact: bool) -> None:
        slot = self._slot(number)
        index, remember = jnp.int32(self._rows[number]), jax.device_put(np.asarray(number in self._tracked))
        self._state, out = _prompt(self._packed, self._here(), index, self._seen(), prompt, jnp.int32(slot), remember, jax.device_put(np.asarray(exact)))
        self._keep(number, out)

    def _find_by_words(self, numbers: list[int]) -> None:
        """Find objects on this frame by their words, all at once and without memory."""
        if not numbers:
            return
        tokens = np.stack([self._words[number] for number in numbers])
        padding = BUCKETS.objects.size(len(tokens)) - len(tokens)
        padded = jax.device_put(np.pad(tokens, ((0, padding), (0, 0), (0, 0))))
        low_res, iou, presence = map(np.asarray, _segment(self._packed, self._seen(), padded))
        for row, number in enumerate(numbers):
            self._outputs[number] = ObjectOutput(low_res[row], float(iou[row]), float(presence[row]))

    def _empty(self) -> TrackState:
        return self._sam2.start(self._capacity, self._dtype, self._length, CONDITIONING, self._recent)

    def _keep(self, number: int, out: TrackOutput) -> None:
        low_res, iou, presence = (np.asarray(array)[0] for array in (out.low_res, out.iou, out.decoded.object_score))
        self._outputs[number] = ObjectOutput(low_res, float(iou), float(presence))

    def _here(self) -> TrackState:
        if self._state is None:
            self._state = self._empty()
        return replace(self._state, frame=jnp.int32(self._frame), direction=jnp.int32(self._direction))

    def _seen(self) -> FrameFeatures:
        assert self._features is not None, "observe a frame first"
        return self._features

    def _new_object(self) -> int:
        self._require_room(1)
        if len(self.objects) == self._capacity:
            self._capacity = BUCKETS.objects.size(self._capacity + 1)
            self._state = None if self._state is None else _grow(self._empty(), self._state)
        number, self._next = self._next, self._next + 1
        self._rows[number] = min(set(range(self._capacity)) - set(self._rows.values()))
        self._slots[number] = [None] * CONDITIONING
        self.objects.append(number)
        return number

    def _slot(self, number: int) -> int:
        """The conditioning slot for this frame, which is noted down. A corrected frame gets one too, so that the correction lasts (reference:
        add_all_frames_to_correct_as_cond in sam2/sam2_video_predictor.py).
        """
        slots = self._slots[number]
        if self._frame not in slots:
            free = [place for place, frame in enumerate(slots) if frame is None]
            place = free[0] if free else max(range(CONDITIONING), key=lambda i: abs((slots[i] or 0) - self._frame))
            slots[place] = self._frame
        return slots.index(self._frame)

    def _points(self, points: ArrayLike, labels: ArrayLike, size: tuple[int, int]) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Points in pixels of the square [1, P, 2] and their labels [1, P], padded with label -2."""
        xy, kinds = np.asarray(points, np.float32).reshape(-1, 2), np.asarray(labels, np.int32).reshape(-1)
        if len(xy) != len(kinds) or not 0 < len(xy) <= MAX_POINTS:
            raise UserError(f"{len(xy)} points with {len(kinds)} labels: expected as many labels as points, from 1 to {MAX_POINTS}")
        if wrong := sorted(set(kinds.tolist()) - {0, 1, 2, 3}):
            raise UserError(f"the label {wrong[0]} of a point: expected 1 on the object or 0 beside it")
        height, width = size
        outside = [p for p in xy.tolist() if not (0 <= p[0] <= width and 0 <= p[1] <= height)]
        if outside:
            raise UserError(f"the point {outside[0][0]:g},{outside[0][1]:g} lies outside the image of {width}x{height} pixels")
        side = self._sam2.config.image_size
        padding = -len(xy) % POINTS
        xy = np.pad(xy / np.asarray([width, height], np.float32) * side, ((0, padding), (0, 0)))
        return xy[None], np.pad(kinds, (0, padding), constant_values=-2)[None]

    def _require_room(self, more: int) -> None:
        if len(self.objects) + more > MAX_OBJECTS:
            known = f" beside {len(self.objects)} that are followed already" if self.objects else ""
            raise UserError(f"{more} objects{known}, expected at most {MAX_OBJECTS} together: ask for fewer, or remove some first")

    def _require(self, number: int) -> None:
        if number not in self._rows:
            known = ", ".join(map(str, self.objects)) or "none"
            raise UserError(f"there is no object {number} (known: {known})")


def resized(image: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """An image [h, w] as a square [side, side], float32, bilinear with antialiasing."""
    if image.shape == (side, side):
        return image
    rows, columns = (bilinear_weights(length, side) for length in image.shape)
    return np.asarray(rows @ image @ columns.T, np.float32)


@Programs
def _step(sam2: Sam2, state: TrackState, features: FrameFeatures, active: jax.Array) -> tuple[TrackState, jax.Array, jax.Array, jax.Array]:
    state, out = sam2.step(state, features, active=active)
    return state, out.low_res, out.iou, out.decoded.object_score


@Programs
def _prompt(
    sam2: Sam2, state: TrackState, index: jax.Array, features: FrameFeatures, prompt: Prompt, slot: jax.Array, remember: jax.Array, exact: jax.Array
) -> tuple[TrackState, TrackOutput]:
    return sam2.prompt(state, index, features, prompt, slot, remember, exact)


@Programs
def _prompt_mask(
    sam2: Sam2, state: TrackState, index: jax.Array, features: FrameFeatures, mask: jax.Array, low_res: jax.Array, slot: jax.Array
) -> tuple[TrackState, TrackOutput]:
    return sam2.prompt_mask(state, index, features, mask, low_res, slot)


@Programs
def _segment(sam2: Sam2, features: FrameFeatures, tokens: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    out = sam2.segment(features, tokens)
    return out.low_res, out.iou, out.decoded.object_score


@Programs
def _words(sam2: Sam2, tokens: jax.Array) -> Prompt:
    """The prompt of one object's hidden tokens [1, H, D], after a padding point as in the reference."""
    side, no = 4 * sam2.config.grid, jnp.zeros((1,), bool)
    both = jnp.concatenate([sam2.prompt_encoder.not_a_point_embed[...][None].astype(tokens.dtype), tokens], axis=1)
    return Prompt(both, jnp.ones(both.shape[:2], bool), jnp.zeros((1, side, side)), no, no)


@Programs
def _points(sam2: Sam2, coords: jax.Array, labels: jax.Array, logits: jax.Array, has_logits: jax.Array, single: jax.Array) -> Prompt:
    return Prompt(sam2.prompt_encoder.points(coords, labels), labels >= 0, logits, has_logits, single)


@Programs
def _clear(state: TrackState, index: jax.Array) -> TrackState:
    one = state.of(index)
    gone = replace(one, memory_frame=jnp.full_like(one.memory_frame, -1), pointer_frame=jnp.full_like(one.pointer_frame, -1))
    return state.put(index, gone)


@Programs
def _grow(larger: TrackState, state: TrackState) -> TrackState:
    return larger.put(jnp.int32(0), state)
