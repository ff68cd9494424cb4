"""The replay of recorded sessions with SAM 2.1: our tracker under the reference's own bookkeeping.

The reference keeps for every object what it computed on every frame, in two dictionaries: of frames that were prompted before they were tracked
(conditioning frames), and of tracked frames. What is added waits in two more until the next propagation. Source: sam2/sam2_video_predictor.py.

O objects, n frames of a propagation, S side of the model's square image, g = S / 16, h and w height and width of the clip.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unipixel_jax.core.programs import Programs
from unipixel_jax.errors import UserError
from unipixel_jax.infer.masks import resize_masks
from unipixel_jax.infer.segmentation import encoded
from unipixel_jax.infer.tracking import LOGITS, resized
from unipixel_jax.models.sam2.neck import FrameFeatures
from unipixel_jax.models.sam2.track_state import BACKWARD, FORWARD, TrackState
from unipixel_jax.models.sam2.tracker import NO_OBJECT, Prompt, Sam2, TrackOutput
from unipixel_jax.parity import compare
from unipixel_jax.parity.compare import Check
from unipixel_jax.parity.recording import Case
from unipixel_jax.processing.square import square_frames

F32 = jnp.dtype("float32")
MAX_FRAMES, MAX_ACTIONS = 64, 64
"""The most frames and actions of a recorded session that are accepted."""
CONDITIONING = 4
"""The most conditioning frames of an object that are accepted."""


@dataclass(frozen=True)
class Stored:
    """What is kept of one object on one frame: memory [1, g * g, M], pointer [1, D], logits [4g, 4g] and object score."""

    memory: np.ndarray
    pointer: np.ndarray
    low_res: np.ndarray
    score: np.ndarray


@dataclass
class Tracked:
    """One object: its state, with a place for each frame, its outputs, what waits to become one, and the direction in which each frame was tracked."""

    state: TrackState
    conditioning: dict[int, Stored] = field(default_factory=dict)
    others: dict[int, Stored] = field(default_factory=dict)
    waiting_conditioning: dict[int, Stored] = field(default_factory=dict)
    waiting_others: dict[int, Stored] = field(default_factory=dict)
    tracked: dict[int, int] = field(default_factory=dict)

    def shown(self, frame: int, conditions: bool) -> Stored | None:
        """Return what is shown of the object where some object is prompted, which ``conditions`` or corrects a tracked frame; None if there is nothing."""
        waiting = self.waiting_conditioning if conditions else self.waiting_others
        return next((kept[frame] for kept in (waiting, self.conditioning, self.others) if frame in kept), None)

    def settle(self) -> None:
        """Let what waits become outputs. A correction of a conditioning frame that does not become one itself is lost, as in the reference."""
        for frame, stored in self.waiting_others.items():
            self.others[frame] = stored
            self._write(frame, stored)
        for frame, stored in self.waiting_conditioning.items():
            self.conditioning[frame] = stored
            self._write(frame, stored, list(self.conditioning).index(frame))
        for frame in self.conditioning.keys() & self.others.keys():
            del self.others[frame]
            self.state = _without(self.state, frame)
        self.waiting_conditioning, self.waiting_others = {}, {}

    def _write(self, frame: int, stored: Stored, slot: int = -1) -> None:
        """Write what is kept of a frame into the state, into a conditioning slot or else its place for tracked frames."""
        memory, pointer = jax.device_put((stored.memory, stored.pointer))
        self.state = _written(self.state.at(frame), memory, pointer, jnp.int32(slot))


class Session:
    """A clip and the objects that are followed through it."""

    def __init__(self, sam2: Sam2, squares: np.ndarray, size: tuple[int, int], settings: Mapping[str, Any]) -> None:
        """Start with frames [F, S, S, 3] uint8, the clip's (height, width), and the settings of the reference's predictor."""
        self.sam2, self.squares, self.size, self.settings = sam2, squares, size, settings
        self.objects: dict[int, Tracked] = {}
        self._encoded: dict[int, FrameFeatures] = {}

    def add(self, frame: int, number: int, prompt: Mapping[str, Any]) -> tuple[Stored, np.ndarray]:
        """Prompt an object on a frame; return its output, and the masks [O, h, w] of all objects there."""
        if number not in self.objects:
            # the same number of places for clips of all lengths, so that one program tracks them all
            self.objects[number] = Tracked(self.sam2.start(1, F32, jnp.int32(len(self.squares)), CONDITIONING, MAX_FRAMES))
        one = self.objects[number]
        corrected = frame in one.tracked
        conditions = not corrected or bool(self.settings.get("add_all_frames_to_correct_as_cond"))
        waiting = one.waiting_conditioning if conditions else one.waiting_others
        state = one.state.at(frame, one.tracked.get(frame, FORWARD))
        if "mask" in prompt:
            side = self.sam2.config.image_size
            square = resized(prompt["mask"].astype(np.float32), side) >= 0.5
            low_res = resized(square.astype(np.float32) * 20 - 10, side // 4)
            state, out = _mask(self.sam2, state, self.features(frame), *jax.device_put((square[None].astype(np.float32), low_res[None])))
        else:
            before = one.shown(frame, conditions)
            coords, labels = self._points(prompt)
            given = np.zeros((self.sam2.config.low_res,) * 2, np.float32) if before is None else np.clip(before.low_res, -LOGITS, LOGITS)
            flags = np.asarray([before is not None]), np.asarray([(labels >= 0).sum() > 1]), np.asarray(corrected)
            state, out = _points(self.sam2, state, self.features(frame), *jax.device_put((coords, labels, given[None], *flags)))
        waiting[frame] = _stored(state, out, frame)
        shown = [known.shown(frame, conditions) for known in self.objects.values()]
        empty = np.full((self.sam2.config.low_res,) * 2, NO_OBJECT, np.float32)
        return waiting[frame], self.masks(np.stack([empty if kept is None else kept.low_res for kept in shown]))

    def propagate(self, start: int | None, count: int | None, direction: int) -> Iterator[tuple[int, list[Stored]]]:
        """Track all objects from a frame on; yield each frame's number and the outputs there."""
        for one in self.objects.values():
            one.settle()
        start = min(min(one.conditioning) for one in self.objects.values()) if start is None else start
        steps = len(self.squares) if count is None else count
        end = start + direction * (steps - 1)
        for frame in range(start, min(max(end, 0), len(self.squares) - 1) + direction, direction):
            for one in self.objects.values():
                if frame not in one.conditioning:
                    one.state, out = _step(self.sam2, one.state.at(frame, direction), self.features(frame))
                    one.others[frame] = _stored(one.state, out, frame)
                one.tracked[frame] = direction
            yield frame, [one.conditioning.get(frame, one.others.get(frame)) for one in self.objects.values()]  # type: ignore[misc]

    def masks(self, low_res: np.ndarray) -> np.ndarray:
        """Return logits [O, 4g, 4g] as masks [O, h, w] that, if the settings say so, do not overlap."""
        logits = resize_masks(low_res, self.size)
        if self.settings.get("non_overlap_masks"):
            logits = np.where(np.arange(len(logits))[:, None, None] == logits.argmax(0), logits, np.minimum(logits, -10))
        return logits > 0

    def features(self, frame: int) -> FrameFeatures:
        """Return what the model sees of a frame."""
        if frame not in self._encoded:
            square = square_frames(self.squares[frame : frame + 1], self.sam2.config.image_size)
            (self._encoded[frame],) = encoded(self.sam2, square, F32, size=1)
        return self._encoded[frame]

    def _points(self, prompt: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Return a prompt's corners and points [1, P, 2] in pixels of the square and their labels [1, P], padded with -2 to eight."""
        corners = np.asarray(prompt.get("box", []), np.float32).reshape(-1, 2)
        xy = np.concatenate([corners, np.asarray(prompt.get("points", []), np.float32).reshape(-1, 2)])
        labels = np.asarray([2, 3][: len(corners)] + list(prompt.get("labels", [])), np.int32)
        xy = xy / np.asarray(self.size[::-1], np.float32) * np.float32(self.sam2.config.image_size)
        padding = -len(xy) % 8
        return np.pad(xy, ((0, padding), (0, 0)))[None], np.pad(labels, (0, padding), constant_values=-2)[None]


def session(case: Case, sam2: Sam2) -> list[Check]:
    """Compare what every action of a recorded session returns."""
    squares, (h, w) = case.input("squares"), case.frame_size()
    side = sam2.config.image_size
    if squares.shape[1:] != (side, side, 3) or squares.dtype != np.uint8 or not 0 < len(squares) <= MAX_FRAMES:
        raise UserError(f"{case.path}: squares is {squares.dtype}{list(squares.shape)}, expected uint8 [1 to {MAX_FRAMES}, {side}, {side}, 3]: record it again")
    checks = []
    clip = Session(sam2, squares, (h, w), case.options.get("settings", {}))
    for number, action in enumerate(case.objects("actions", MAX_ACTIONS)):
        theirs = {name.removeprefix(f"{number}."): value for name, value in case.outputs.items() if name.startswith(f"{number}.")}
        if action["do"] == "remove":
            del clip.objects[action["object"]]
            found: dict[str, np.ndarray] = {}
        elif action["do"] == "add":
            prompt = {**action, "mask": case.input(action["mask"])} if "mask" in action else action
            one, masks = clip.add(action["frame"], action["object"], prompt)
            found = {"low_res": one.low_res[None], "pointer": one.pointer, "score": one.score, "masks": masks}
            theirs |= {"low_res": theirs["low_res"][None], "pointer": theirs["pointer"][None], "score": theirs["score"][None]}
        else:
            rows = list(clip.propagate(action.get("start"), action.get("count"), BACKWARD if action.get("backward") else FORWARD))
            found = {
                "frames": np.asarray([frame for frame, _ in rows]),
                "low_res": np.stack([[one.low_res for one in outs] for _, outs in rows]),
                "scores": np.stack([[one.score[0] for one in outs] for _, outs in rows]),
                "pointers": np.stack([[one.pointer[0] for one in outs] for _, outs in rows]),
                "masks": np.stack([clip.masks(np.stack([one.low_res for one in outs])) for _, outs in rows]),
            }
        found["objects"] = np.asarray(list(clip.objects))
        checks += [_check(f"{number}.{name}", found[name], value) for name, value in theirs.items()]
    return checks


def _check(name: str, ours: np.ndarray, theirs: np.ndarray) -> Check:
    kind = name.partition(".")[2]
    if theirs.dtype.kind == "i":
        return compare.exact(name, ours, theirs)
    if theirs.dtype.kind == "b":
        return compare.same_masks(name, ours, theirs)
    if kind.startswith("score"):
        return compare.close_scores(name, ours, theirs, compare.SESSION_SCORES)
    return compare.close_per_frame(name, ours, theirs, compare.FORWARD)


def _stored(state: TrackState, out: TrackOutput, frame: int) -> Stored:
    """Return what a state remembers of a frame in its places for tracked frames, and the output there."""
    memory, pointer = (np.asarray(buffer)[CONDITIONING + frame % (len(buffer) - CONDITIONING)] for buffer in (state.memory, state.pointer))
    return Stored(memory, pointer, np.asarray(out.low_res)[0], np.asarray(out.decoded.object_score))


def _without(state: TrackState, frame: int) -> TrackState:
    """Return the state without a tracked frame."""
    numbers: dict[str, Any] = {}
    for name in ("memory_frame", "pointer_frame"):
        kept = np.array(getattr(state, name))
        kept[CONDITIONING:][kept[CONDITIONING:] == frame] = -1
        numbers[name] = jax.device_put(kept)
    return replace(state, **numbers)


@Programs
def _written(state: TrackState, memory: jax.Array, pointer: jax.Array, slot: jax.Array) -> TrackState:
    return state.write(memory, pointer, slot)


@Programs
def _step(sam2: Sam2, state: TrackState, features: FrameFeatures) -> tuple[TrackState, TrackOutput]:
    return sam2.step(state, features)


@Programs
def _mask(sam2: Sam2, state: TrackState, features: FrameFeatures, square: jax.Array, low_res: jax.Array) -> tuple[TrackState, TrackOutput]:
    return sam2.prompt_mask(state, jnp.int32(0), features, square, low_res, jnp.int32(-1))


@Programs
def _points(
    sam2: Sam2,
    state: TrackState,
    features: FrameFeatures,
    coords: jax.Array,
    labels: jax.Array,
    logits: jax.Array,
    has_logits: jax.Array,
    single: jax.Array,
    corrected: jax.Array,
) -> tuple[TrackState, TrackOutput]:
    prompt = Prompt(sam2.prompt_encoder.points(coords, labels), labels >= 0, logits, has_logits, single)
    return sam2.prompt(state, jnp.int32(0), features, prompt, jnp.int32(-1), corrected, jnp.ones((), bool))
