"""SAM 2.1 as a tracker with a state of fixed size (reference: sam2/modeling/sam2_base.py, sam2_video_predictor.py, sam2_train.py).

One function, ``Sam2.step``, takes a state and a frame and returns the next state and the masks. A clip is a scan over it, a stream calls it frame by
frame, several objects are its batch axis, and training differentiates through it. Memory does not grow with the clip.

F frames, O objects, g side of the feature grid, D width, M memory width, K = num_maskmem memories, R = 16 pointers. Slot 0 of both holds the
conditioning frame (frame 0), and the others are a ring of the latest frames. The order of slots does not matter, since codes of time come from frame numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from unipixel_jax.config import Sam2Config
from unipixel_jax.core.axes import CHANNELS, EMBED, IMAGES
from unipixel_jax.core.dropout import fold
from unipixel_jax.core.params import declare, zeros
from unipixel_jax.core.sharding import ACTIVATIONS, constrain, pad_to_multiple
from unipixel_jax.core.stacking import Remat, checkpointed
from unipixel_jax.models.layers import Linear, Mlp3
from unipixel_jax.models.sam2.hiera import Hiera
from unipixel_jax.models.sam2.mask_decoder import DecodedMasks, MaskDecoder
from unipixel_jax.models.sam2.memory import MemoryAttention, MemoryEncoder
from unipixel_jax.models.sam2.neck import FrameFeatures, Neck
from unipixel_jax.models.sam2.position import sine_1d, sine_grid
from unipixel_jax.models.sam2.prompt_encoder import PromptEncoder
from unipixel_jax.ops.resize import resize_bilinear

MAX_POINTERS = 16
"""The number R of slots for object pointers."""
NO_OBJECT = -1024.0
"""The logits, at inference, of a mask whose object is not in the frame."""
UNKNOWN_LENGTH = 1 << 30
"""The ``clip_length`` of a stream, which is expected to have at least 16 frames."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrackState:
    """The state of tracking between two frames.

    Attributes:
        memory: [K, O, g * g, M] memory features, in the compute dtype.
        memory_frame: [K] int32, the number of the frame that each memory was made from, -1 for an empty slot.
        pointer: [R, O, D] object pointers, in the compute dtype.
        pointer_frame: [R] int32, the number of the frame that each pointer was made from, -1 for an empty slot.
        frame: int32 scalar, the number of the frame that comes next.
        clip_length: int32 scalar, the number of frames of the clip; below 16 it scales the pointers' code of time.
    """

    memory: jax.Array
    memory_frame: jax.Array
    pointer: jax.Array
    pointer_frame: jax.Array
    frame: jax.Array
    clip_length: jax.Array

    @classmethod
    def empty(cls, c: Sam2Config, objects: int, dtype: jnp.dtype, clip_length: int | jax.Array = UNKNOWN_LENGTH) -> TrackState:
        """Return the state before frame 0."""
        return cls(
            memory=jnp.zeros((c.num_maskmem, objects, c.grid**2, c.mem_dim), dtype),
            memory_frame=jnp.full((c.num_maskmem,), -1, jnp.int32),
            pointer=jnp.zeros((MAX_POINTERS, objects, c.d_model), dtype),
            pointer_frame=jnp.full((MAX_POINTERS,), -1, jnp.int32),
            frame=jnp.zeros((), jnp.int32),
            clip_length=jnp.asarray(clip_length, jnp.int32),
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrackOutput:
    """The masks and scores of one frame. The best of three masks is the one with the highest predicted IoU.

    Attributes:
        low_res: [O, 4g, 4g] float32 logits of the best mask; -1024 where the object is not in the frame, except with ``training``.
        pointer: [O, D] object pointer.
        decoded: all three masks and the scores, for objects that are not in the frame too.
    """

    low_res: jax.Array
    pointer: jax.Array
    decoded: DecodedMasks


class MaskInputConv(nnx.Module):
    """The convolution for masks that users give as prompts. UniPixel has no such prompts; the weight is kept so that checkpoints stay complete."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.weight = declare(rngs, (1, 1, 4, 4), (None, None, None, None))
        self.bias = declare(rngs, (1,), (None,), zeros)


class Sam2(nnx.Module):
    """SAM 2.1: image encoder, prompt encoder, mask decoder, memory, and the step of tracking that joins them."""

    def __init__(self, c: Sam2Config, rngs: nnx.Rngs) -> None:
        d, m = c.d_model, c.mem_dim
        self.hiera = Hiera(c, rngs)
        self.neck = Neck(c, rngs)
        self.prompt_encoder = PromptEncoder(c, rngs)
        self.mask_decoder = MaskDecoder(c, rngs)
        self.memory_attention = MemoryAttention(c, rngs)
        self.memory_encoder = MemoryEncoder(c, rngs)
        self.maskmem_tpos_enc = declare(rngs, (c.num_maskmem, 1, 1, m), (None, None, None, CHANNELS))
        self.no_mem_embed = declare(rngs, (1, 1, d), (None, None, EMBED))
        self.no_mem_pos_enc = declare(rngs, (1, 1, d), (None, None, EMBED))
        self.no_obj_ptr = declare(rngs, (1, d), (None, EMBED))
        self.no_obj_embed_spatial = declare(rngs, (1, m), (None, CHANNELS))
        self.mask_downsample = MaskInputConv(rngs)
        self.obj_ptr_proj = Mlp3(d, d, d, rngs)
        self.obj_ptr_tpos_proj = Linear(d, m, (CHANNELS, EMBED), rngs)
        self.config = c

    def encode(self, images: jax.Array, remat: Remat = "none") -> FrameFeatures:
        """Encode frames, once for all objects: normalised images [F, S, S, 3] in the compute dtype to features with a leading axis of F."""
        count, images = images.shape[0], constrain(pad_to_multiple(images, ACTIVATIONS[IMAGES]), IMAGES)
        features = self.neck(self.hiera(images, remat), self.mask_decoder.conv_s0, self.mask_decoder.conv_s1)
        return jax.tree.map(lambda a: a[:count], features)

    def start(self, objects: int, dtype: jnp.dtype, clip_length: int | jax.Array = UNKNOWN_LENGTH) -> TrackState:
        """Return the state before frame 0; ``clip_length`` is the number of frames that will come, where that is known."""
        return TrackState.empty(self.config, objects, dtype, clip_length)

    def step(self, state: TrackState, features: FrameFeatures, hidden: jax.Array, training: bool = False) -> tuple[TrackState, TrackOutput]:
        """Track one frame.

        Args:
            state: from ``start`` or the step before.
            features: the features of this frame, each array [1, ...] (shared by the objects) or [O, ...].
            hidden: [O, H, D] the objects' hidden tokens (from seg_head); they prompt frame 0 and are ignored later.
            training: whether the logits of absent objects are kept, as the reference does while training.

        Returns:
            The next state, and the frame's masks and scores.
        """
        objects, first = hidden.shape[0], state.frame == 0
        low = features.low
        plain = lambda: jnp.broadcast_to(low + self.no_mem_embed[...].astype(low.dtype)[None], (objects, *low.shape[1:]))  # noqa: E731
        conditioned = jax.lax.cond(first, plain, lambda: self._remember(state, low))
        decoded = self._decode(conditioned, features, hidden, jnp.broadcast_to(first, (objects,)))
        output = self._output(decoded, training)
        memory = self._memorise(features.low, output)
        age = jnp.maximum(state.frame - 1, 0)
        slot = jnp.where(first, 0, 1 + age % (self.config.num_maskmem - 1))
        pointer_slot = jnp.where(first, 0, 1 + age % (MAX_POINTERS - 1))
        return (
            TrackState(
                memory=constrain(_write(state.memory, slot, memory), None, IMAGES),
                memory_frame=_write(state.memory_frame, slot, state.frame),
                pointer=_write(state.pointer, pointer_slot, output.pointer),
                pointer_frame=_write(state.pointer_frame, pointer_slot, state.frame),
                frame=state.frame + 1,
                clip_length=state.clip_length,
            ),
            output,
        )

    def track(
        self, features: FrameFeatures, hidden: jax.Array, clip_length: int | jax.Array, training: bool = False, remat: Remat = "none"
    ) -> TrackOutput:
        """Track a whole clip, as a scan of ``step`` over features [F, ...]; returns outputs with a leading axis of F. Arguments are those of ``step``.

        ``clip_length`` is the true number of frames. Features beyond it are padding, whose outputs are finite but meaningless and affect no frame before them.
        """

        def step(state: TrackState, frame: FrameFeatures) -> tuple[TrackState, TrackOutput]:
            return self.step(state, jax.tree.map(lambda a: a[None], frame), hidden, training)

        features, hidden = constrain(features), constrain(hidden, IMAGES)
        state = self.start(hidden.shape[0], features.low.dtype, clip_length)
        return jax.lax.scan(checkpointed(step, remat), state, features)[1]

    def segment_frames(self, features: FrameFeatures, hidden: jax.Array, training: bool = False) -> TrackOutput:
        """Segment every frame without memory (the reference's ``sam2_batch_mode``): features [F, ...] and hidden [O, H, D] to outputs [F, O, ...]."""
        features, hidden = constrain(features), constrain(hidden, IMAGES)
        return jax.lax.map(lambda frame: self.segment(jax.tree.map(lambda a: a[None], frame), hidden, training), features)

    def segment(self, features: FrameFeatures, hidden: jax.Array, training: bool = False) -> TrackOutput:
        """Segment objects without memory: features [1, ...] of one frame, or [O, ...] of each object's own, and hidden [O, H, D] to outputs [O, ...]."""
        low = jnp.broadcast_to(features.low, (hidden.shape[0], *features.low.shape[1:]))
        conditioned = low + self.no_mem_embed[...].astype(low.dtype)[None]
        return self._output(self._decode(conditioned, features, hidden, jnp.ones(hidden.shape[0], bool)), training)

    def _remember(self, state: TrackState, low: jax.Array) -> jax.Array:
        """Condition features ``low`` [1 or O, g, g, D] on the memories and pointers in slots that are not empty; returns [O, g, g, D]."""
        c, dtype = self.config, low.dtype
        tokens = c.d_model // c.mem_dim
        # The conditioning memory takes the last row of the table, the frame k steps back row k - 1.
        age = jnp.where(state.memory_frame == 0, c.num_maskmem, state.frame - state.memory_frame)
        tpos = self.maskmem_tpos_enc[...][:, 0].astype(jnp.float32)[jnp.clip(age - 1, 0, c.num_maskmem - 1)]
        grid = rearrange(jnp.asarray(sine_grid(c.grid, c.mem_dim)), "row column d -> 1 (row column) d")
        memory = rearrange(state.memory, "slots o at d -> o (slots at) d")
        memory_pos = rearrange(grid + tpos, "slots at d -> 1 (slots at) d")

        # Without the 1, padding frames after a single frame would divide by 0, and their NaN losses would stay NaN where they are multiplied by 0.
        reach = jnp.clip(state.clip_length - 1, 1, MAX_POINTERS - 1)
        distance = (state.frame - state.pointer_frame).astype(jnp.float32) / reach.astype(jnp.float32)
        pointer_pos = self.obj_ptr_tpos_proj(sine_1d(distance, c.d_model).astype(dtype))
        pointers = rearrange(state.pointer, "slots o (tokens d) -> o (slots tokens) d", d=c.mem_dim)
        pointer_pos = jnp.repeat(pointer_pos, tokens, axis=0)[None].astype(jnp.float32)

        visible = jnp.concatenate([jnp.repeat(state.memory_frame >= 0, c.grid**2), jnp.repeat(state.pointer_frame >= 0, tokens)]).astype(jnp.int32)
        return fold(self.memory_attention, state.frame)(
            low,
            jnp.concatenate([memory, pointers], axis=1),
            jnp.concatenate([memory_pos, pointer_pos], axis=1),
            visible,
            off_grid=MAX_POINTERS * tokens,
        )

    def _decode(self, conditioned: jax.Array, features: FrameFeatures, hidden: jax.Array, first: jax.Array) -> DecodedMasks:
        """Run the mask decoder on a prompt of two padding points and, for objects where ``first`` [O] holds, the hidden tokens [O, H, D]."""
        encoder, dtype = self.prompt_encoder, conditioned.dtype
        nothing = jnp.broadcast_to(encoder.not_a_point_embed[...][None].astype(dtype), (hidden.shape[0], 2, hidden.shape[2]))
        prompt = jnp.concatenate([nothing, hidden.astype(dtype)], axis=1)
        valid = jnp.concatenate([jnp.ones((hidden.shape[0], 2), bool), jnp.broadcast_to(first[:, None], hidden.shape[:2])], axis=1)
        image = conditioned + encoder.no_mask().astype(dtype)
        return self.mask_decoder(image, encoder.dense_pe(), prompt, valid, features.high0, features.high1)

    def _output(self, decoded: DecodedMasks, training: bool) -> TrackOutput:
        present = (decoded.object_score > 0)[:, None]
        masks = decoded.masks if training else jnp.where(present[..., None, None], decoded.masks, NO_OBJECT)
        best = jnp.argmax(decoded.iou, axis=1)
        low_res = jnp.take_along_axis(masks, best[:, None, None, None], axis=1)[:, 0]
        token = jnp.take_along_axis(decoded.tokens, best[:, None, None], axis=1)[:, 0]
        pointer = jnp.where(present, self.obj_ptr_proj(token), self.no_obj_ptr[...].astype(token.dtype))
        return TrackOutput(low_res, pointer, decoded)

    def _memorise(self, low: jax.Array, output: TrackOutput) -> jax.Array:
        """Return memory features [O, g * g, M] of a frame from its features [1 or O, g, g, D] and its best masks."""
        c = self.config
        memory = self.memory_encoder(low, resize_bilinear(output.low_res, (c.image_size, c.image_size)))
        absent = (output.decoded.object_score <= 0).astype(memory.dtype)[:, None, None]
        return rearrange(memory, "o row column d -> o (row column) d") + absent * self.no_obj_embed_spatial[...].astype(memory.dtype)[None]


def _write(buffer: jax.Array, slot: jax.Array, value: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(buffer, value.astype(buffer.dtype), slot, 0)
