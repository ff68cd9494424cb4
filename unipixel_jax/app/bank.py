"""What the tracker remembers between two frames, as pictures: each slot's frame, how long ago it was, and how sure the object was to be there.

O objects, g side of the feature grid, M memory width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unipixel_jax.app.answer import chip
from unipixel_jax.app.pictures import data_uri
from unipixel_jax.infer.prediction import FrameResult
from unipixel_jax.infer.tracking import CONDITIONING
from unipixel_jax.infer.visualize import draw_objects

OBJECTS = 3
"""Objects whose memories are shown; more would be slow to draw with every frame."""
THUMBNAIL = 160


@dataclass(frozen=True)
class Slot:
    """A place in the memory of an object.

    Attributes:
        frame: the number of the frame that it holds, -1 where it is empty.
        age: how many frames ago that was.
        prompted: whether it is a place for frames on which the object was prompted, which stay.
        presence: the probability that the object was on that frame; None where it is not known.
        map: the strength of the memory at each place of the feature grid [g, g], float32.
    """

    frame: int
    age: int
    prompted: bool
    presence: float | None
    map: NDArray[np.float32]


@dataclass
class Album:
    """The frames that the memory holds, small, with how sure each object was to be there. Frames that it gave up are given up here too.

    Attributes:
        thumbnails: an address of each frame's picture.
        presence: of each frame's objects, by their numbers.
    """

    thumbnails: dict[int, str] = field(default_factory=dict)
    presence: dict[int, dict[int, float]] = field(default_factory=dict)

    def add(self, place: int, result: FrameResult, held: set[int]) -> None:
        """Take a frame.

        Args:
            place: its number for the tracker.
            result: what was found on it.
            held: the frames that the memory holds.
        """
        self.thumbnails[place] = data_uri(draw_objects(result.pixels, result.masks, result.objects), THUMBNAIL)
        self.presence[place] = dict(zip(result.objects, map(float, result.presence), strict=True))
        for gone in self.thumbnails.keys() - held - {place}:
            del self.thumbnails[gone], self.presence[gone]


def frames_held(state: dict[str, Any]) -> set[int]:
    """The numbers of the frames in what ``Stream.save`` returned."""
    return set(np.asarray(state["memory_frame"]).ravel().tolist()) - {-1}


def slots_of(state: dict[str, Any], number: int, album: Album) -> list[Slot]:
    """The memory of one object: the places of prompted frames, then those of the latest ones from new to old.

    Args:
        state: what ``Stream.save`` returned.
        number: the object's.
        album: knows how sure it was to be there.
    """
    table = np.asarray(state["objects"])
    row = int(table[table[:, 0] == number][0, 1])
    frames = np.asarray(state["memory_frame"])[:, row]
    memory = np.asarray(state["memory"])[:, row].astype(np.float32)
    now, side = int(np.asarray(state["frame"])), round(memory.shape[1] ** 0.5)
    strength = np.linalg.norm(memory, axis=-1).reshape(len(memory), side, side)
    slots = [
        Slot(int(frame), now - int(frame), place < CONDITIONING, album.presence.get(int(frame), {}).get(number), strength[place])
        for place, frame in enumerate(frames)
    ]
    return [*slots[:CONDITIONING], *sorted(slots[CONDITIONING:], key=lambda slot: -slot.frame)]


def bank_html(state: dict[str, Any], objects: tuple[int, ...], album: Album) -> str:
    """The memory of the first few objects."""
    parts = []
    for number in objects[:OBJECTS]:
        slots = slots_of(state, number, album)
        used = sum(slot.frame >= 0 for slot in slots)
        shown = [slot for slot in slots if slot.frame >= 0 or not slot.prompted]
        places = "".join(_slot(slot, album) for slot in shown)
        parts.append(f'<section><h3>{chip(number)} {used} of {len(slots)} places</h3><div class="ux-slots">{places}</div></section>')
    more = f'<p class="ux-note">and {len(objects) - OBJECTS} more objects</p>' if len(objects) > OBJECTS else ""
    return f'<div class="ux-bank">{"".join(parts)}{more}</div>'


def _slot(slot: Slot, album: Album) -> str:
    if slot.frame < 0:
        return '<div class="ux-slot ux-free"><small>free</small></div>'
    age = "now" if slot.age == 0 else f"{slot.age} ago"
    sure = "" if slot.presence is None else f" · {slot.presence:.2f}"
    kind = "prompted" if slot.prompted else "recent"
    picture = album.thumbnails.get(slot.frame, "")
    low, high = float(slot.map.min()), float(slot.map.max())
    heat = ((slot.map - low) / max(high - low, 1e-6) * 255).astype(np.uint8)
    coloured = np.stack([heat, (heat * 0.65).astype(np.uint8), 90 - heat // 4], axis=-1)
    squares = data_uri(np.kron(coloured, np.ones((4, 4, 1), np.uint8)), THUMBNAIL, nearest=True)
    return (
        f'<div class="ux-slot ux-{kind}"><img alt="frame {slot.frame}" src="{picture}">'
        f'<img class="ux-map" alt="the memory of frame {slot.frame}" src="{squares}">'
        f"<div>frame {slot.frame}<br><small>{age}{sure}<br>{kind}</small></div></div>"
    )
