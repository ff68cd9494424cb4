"""What SAM 2.1 keeps between two frames: memories and object pointers in slots of a fixed number (reference: output_dict in sam2/sam2_video_predictor.py).

F frames, O objects, g side of the feature grid, D width, M memory width, C conditioning slots, N slots for recent memories, R for recent pointers. The order of
slots does not matter, since codes of time come from frame numbers. Objects are independent of each other: each has its own frames in its slots.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp

from unipixel_jax.config import UNKNOWN_LENGTH, Sam2Config

MAX_POINTERS = 16
"""The object pointers that a frame attends to at most: one of a conditioning frame and 15 recent ones."""
FORWARD, BACKWARD = 1, -1
"""The directions of time in which objects are tracked."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrackState:
    """The state of tracking between two frames.

    The first C slots hold frames that were prompted. The others are a ring of tracked frames, in which frame t lies in slot C + t mod N or C + t mod R.

    Attributes:
        memory: [C + N, O, g * g, M] memory features, in the compute dtype.
        memory_frame: [C + N, O] int32, the number of the frame that each memory was made from, -1 for an empty slot.
        pointer: [C + R, O, D] object pointers, in the compute dtype.
        pointer_frame: [C + R, O] int32, the number of the frame that each pointer was made from, -1 for an empty slot.
        frame: int32 scalar, the number of the frame that comes next.
        direction: int32 scalar, 1 where frames come in order, -1 where they come from last to first.
        clip_length: int32 scalar, the number of frames of the clip; below 16 it scales the pointers' code of time.
        conditioning: C.
    """

    memory: jax.Array
    memory_frame: jax.Array
    pointer: jax.Array
    pointer_frame: jax.Array
    frame: jax.Array
    direction: jax.Array
    clip_length: jax.Array
    conditioning: int = field(metadata={"static": True})

    @classmethod
    def empty(
        cls,
        c: Sam2Config,
        objects: int,
        dtype: jnp.dtype,
        clip_length: int | jax.Array = UNKNOWN_LENGTH,
        conditioning: int = 1,
        recent: int = 0,
    ) -> TrackState:
        """Return the state before frame 0.

        Args:
            c: the model's sizes.
            objects: O.
            dtype: the compute dtype.
            clip_length: the number of frames that will come, where that is known.
            conditioning: C, how many prompted frames an object can have.
            recent: how many tracked frames are kept, so that tracking can go back to them; a frame attends to the nearest of them only. At least the
                ``num_maskmem`` - 1 memories and 15 pointers that tracking in one direction needs are kept.
        """
        memories, pointers = conditioning + max(c.num_maskmem - 1, recent), conditioning + max(MAX_POINTERS - 1, recent)
        return cls(
            memory=jnp.zeros((memories, objects, c.grid**2, c.mem_dim), dtype),
            memory_frame=jnp.full((memories, objects), -1, jnp.int32),
            pointer=jnp.zeros((pointers, objects, c.d_model), dtype),
            pointer_frame=jnp.full((pointers, objects), -1, jnp.int32),
            frame=jnp.zeros((), jnp.int32),
            direction=jnp.full((), FORWARD, jnp.int32),
            clip_length=jnp.asarray(clip_length, jnp.int32),
            conditioning=conditioning,
        )

    def nearest(self, memories: int) -> TrackState:
        """Return the state with the conditioning slots and, in place of the whole ring, those of the frames just before the next one.

        Args:
            memories: how many memories of tracked frames to take; of pointers, ``MAX_POINTERS`` - 1 are taken.
        """

        def take(buffer: jax.Array, count: int) -> jax.Array:
            ring = buffer.shape[0] - self.conditioning
            if ring == count:
                return buffer
            before = self.frame - self.direction * jnp.arange(1, count + 1)
            return jnp.take(buffer, jnp.concatenate([jnp.arange(self.conditioning), self.conditioning + before % ring]), axis=0)

        pointers = MAX_POINTERS - 1
        return replace(
            self,
            memory=take(self.memory, memories),
            memory_frame=take(self.memory_frame, memories),
            pointer=take(self.pointer, pointers),
            pointer_frame=take(self.pointer_frame, pointers),
        )

    def ages(self, frames: jax.Array) -> jax.Array:
        """Return how many frames before the next one, in the direction of tracking, the frames of slots [slots, O] lie, int32; negative for later ones."""
        return self.direction * (self.frame - frames)

    def write(self, memory: jax.Array, pointer: jax.Array, slot: jax.Array | None = None, active: jax.Array | None = None) -> TrackState:
        """Return the state with a memory [O, g * g, M] and a pointer [O, D] of the frame that comes next, which is not advanced.

        Args:
            memory: memory features of every object.
            pointer: object pointers.
            slot: int32 scalar, the conditioning slot to write; negative, or None for all calls, for the frame's places in the rings.
            active: [O] booleans, the objects that are written; None for all.
        """

        def put(buffer: jax.Array, value: jax.Array) -> jax.Array:
            ring = self.conditioning + self.frame % (buffer.shape[0] - self.conditioning)
            place = ring if slot is None else jnp.where(slot < 0, ring, slot)
            value = value.astype(buffer.dtype)
            if active is not None:
                old = jax.lax.dynamic_index_in_dim(buffer, place, keepdims=False)
                value = jnp.where(active.reshape(-1, *[1] * (value.ndim - 1)), value, old)
            return jax.lax.dynamic_update_index_in_dim(buffer, value, place, 0)

        number = jnp.broadcast_to(self.frame, self.memory_frame.shape[1:])
        return replace(
            self,
            memory=put(self.memory, memory),
            memory_frame=put(self.memory_frame, number),
            pointer=put(self.pointer, pointer),
            pointer_frame=put(self.pointer_frame, number),
        )

    def conditioned(self, slot: jax.Array) -> TrackState:
        """Return the state in which the frame that comes next is no tracked frame, where ``slot`` is a conditioning slot (not negative) that it goes to."""

        def forget(numbers: jax.Array) -> jax.Array:
            ring = jnp.arange(len(numbers))[:, None] >= self.conditioning
            return jnp.where(ring & (numbers == self.frame) & (slot >= 0), -1, numbers)

        return replace(self, memory_frame=forget(self.memory_frame), pointer_frame=forget(self.pointer_frame))

    def at(self, frame: jax.Array | int, direction: jax.Array | int = FORWARD) -> TrackState:
        """Return the state before another frame, which is reached in a direction."""
        return replace(self, frame=jnp.asarray(frame, jnp.int32), direction=jnp.asarray(direction, jnp.int32))

    def advanced(self) -> TrackState:
        """Return the state before the frame after the next one."""
        return replace(self, frame=self.frame + self.direction)

    def of(self, index: jax.Array) -> TrackState:
        """Return the state of one object, with O = 1."""
        return self._map(lambda a: jax.lax.dynamic_slice_in_dim(a, index, 1, axis=1))

    def put(self, index: jax.Array, one: TrackState) -> TrackState:
        """Return the state in which one object's slots are those of ``one``, a state with O = 1."""
        return self._map(lambda a, b: jax.lax.dynamic_update_slice_in_dim(a, b, index, axis=1), one)

    def _map(self, function, *others: TrackState) -> TrackState:  # type: ignore[no-untyped-def]
        names = ("memory", "memory_frame", "pointer", "pointer_frame")
        return replace(self, **{name: function(getattr(self, name), *(getattr(other, name) for other in others)) for name in names})
