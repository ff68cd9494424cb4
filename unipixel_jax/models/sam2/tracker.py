"""SAM 2.1 as a tracker with a state of fixed size (reference: sam2/modeling/sam2_base.py, sam2_video_predictor.py, sam2_train.py).

One function, ``Sam2.step``, takes a state and a frame and returns the next state and the masks. A clip is a scan over it, a stream calls it frame by
frame, several objects are its batch axis, and training differentiates through it. ``Sam2.prompt`` and ``Sam2.prompt_mask`` take what a user says about one
object on one frame. Memory does not grow with the clip (see track_state.py).

F frames, O objects, P prompt tokens, g side of the feature grid, S = 16 g side of the image, D width, M memory width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import nnx

from unipixel_jax.config import UNKNOWN_LENGTH, Sam2Config
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
from unipixel_jax.models.sam2.track_state import MAX_POINTERS, TrackState
from unipixel_jax.ops.conv import conv_patches
from unipixel_jax.ops.resize import resize_bilinear

NO_OBJECT = -1024.0
"""The logits, at inference, of a mask whose object is not in the frame."""
STABILITY_DELTA, STABILITY = 0.05, 0.98
"""The single mask is taken where its areas above this logit and above its negative differ by less than this ratio says (reference: build_sam.py)."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrackOutput:
    """The masks and scores of one frame.

    Attributes:
        low_res: [O, 4g, 4g] float32 logits of the chosen mask; -1024 where the object is not in the frame, except with ``training``.
        iou: [O] float32, the predicted intersection over union of the chosen mask.
        pointer: [O, D] object pointer.
        decoded: the masks to choose from and the scores, for objects that are not in the frame too.
    """

    low_res: jax.Array
    iou: jax.Array
    pointer: jax.Array
    decoded: DecodedMasks


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Prompt:
    """What a user, or the language model, says about objects on a frame.

    Attributes:
        tokens: [O, P, D] embeddings of points and corners of boxes (``PromptEncoder.points``), or hidden tokens.
        valid: [O, P] booleans, False at padding.
        logits: [O, 4g, 4g] float32 logits of a mask that is refined.
        has_logits: [O] booleans, whether there is such a mask.
        single: [O] booleans, whether the prompt is clear enough for one mask, rather than the best of three; from two points on it is.
    """

    tokens: jax.Array
    valid: jax.Array
    logits: jax.Array
    has_logits: jax.Array
    single: jax.Array


class MaskInputConv(nnx.Module):
    """The convolution that takes a mask that a user gives to the scale of the mask decoder's prompts, from which the object's pointer is made."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.weight = declare(rngs, (1, 1, 4, 4), (None, None, None, None))
        self.bias = declare(rngs, (1,), (None,), zeros)

    def __call__(self, mask: jax.Array) -> jax.Array:
        """Map masks [O, S, S] of zeros and ones to logits [O, S / 4, S / 4] in the same dtype."""
        return conv_patches(mask[..., None], self.weight[...], self.bias[...])[..., 0]


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

    def start(self, objects: int, dtype: jnp.dtype, clip_length: int | jax.Array = UNKNOWN_LENGTH, conditioning: int = 1, recent: int = 0) -> TrackState:
        """Return the state before frame 0; the arguments are those of ``TrackState.empty``."""
        return TrackState.empty(self.config, objects, dtype, clip_length, conditioning, recent)

    def step(
        self, state: TrackState, features: FrameFeatures, hidden: jax.Array | None = None, training: bool = False, active: jax.Array | None = None
    ) -> tuple[TrackState, TrackOutput]:
        """Track one frame.

        Args:
            state: from ``start`` or the step before.
            features: the features of this frame, each array [1, ...] (shared by the objects) or [O, ...].
            hidden: [O, H, D] the objects' hidden tokens (from seg_head); they prompt frame 0 and are ignored later. None where ``prompt`` has said what
                the objects are.
            training: whether the logits of absent objects are kept, as the reference does while training.
            active: [O] booleans, the objects whose memory this frame enters; None for all. What the outputs of the others say means nothing.

        Returns:
            The next state, and the frame's masks and scores.
        """
        low, slot, first = features.low, None, state.frame == 0
        if hidden is None:
            conditioned = self._remember(state, low)
        else:
            slot = jnp.where(first, 0, -1)
            plain = lambda: jnp.broadcast_to(self._without_memory(low), (hidden.shape[0], *low.shape[1:]))  # noqa: E731
            conditioned = jax.lax.cond(first, plain, lambda: self._remember(state, low))
        output = self._output(self._decode(conditioned, features, hidden, first), training)
        memory = constrain(self._memorise(low, output.low_res, output.decoded.object_score > 0), IMAGES)
        state = state.write(memory, output.pointer, slot, active)
        return replace(state, memory=constrain(state.memory, None, IMAGES)).advanced(), output

    def prompt(
        self, state: TrackState, index: jax.Array, features: FrameFeatures, prompt: Prompt, slot: jax.Array, remember: jax.Array, exact: jax.Array
    ) -> tuple[TrackState, TrackOutput]:
        """Find one object by a prompt on the frame that ``state.frame`` numbers (reference: add_new_points_or_box in sam2/sam2_video_predictor.py).

        Args:
            state: the state of all objects; it is not advanced.
            index: int32 scalar, the object.
            features: the features of the frame, each array [1, ...].
            prompt: the prompt of this object, with O = 1.
            slot: int32 scalar, the conditioning slot that remembers the frame, or negative for its place in the ring.
            remember: boolean scalar, whether the frame's features are conditioned on what is known of the object: where a tracked mask is corrected.
            exact: boolean scalar, whether the memory is made of the mask as it is shown, zeros and ones, as the reference does for clicks.

        Returns:
            The state with the object's memory of this frame, and its output with O = 1, which holds four masks, the single one first.
        """
        own = state.of(index)
        conditioned = jax.lax.cond(remember, lambda: self._remember(own, features.low), lambda: self._without_memory(features.low))
        decoded = self._decode_prompt(conditioned, features, prompt, _padding(prompt))
        output = self._output_of_four(decoded, prompt.single)
        memory = self._memorise(features.low, output.low_res, decoded.object_score > 0, exact)
        return state.put(index, own.conditioned(slot).write(memory, output.pointer, slot)), output

    def prompt_mask(
        self, state: TrackState, index: jax.Array, features: FrameFeatures, mask: jax.Array, low_res: jax.Array, slot: jax.Array
    ) -> tuple[TrackState, TrackOutput]:
        """Take one object's mask on a frame from the user (reference: _use_mask_as_output in sam2/modeling/sam2_base.py).

        Args:
            state, index, features, slot: see ``prompt``.
            mask: [1, S, S] of zeros and ones, in the compute dtype.
            low_res: [1, 4g, 4g] float32, the logits that stand for the mask: 20 times it minus 10, resized with antialiasing.

        Returns:
            The state with the object's memory of this frame, and an output whose masks are all ``low_res``.
        """
        present = jnp.any(mask > 0, axis=(1, 2))
        nothing = jnp.zeros((1, 0, features.low.shape[-1]), features.low.dtype)
        dense = self.mask_downsample(mask.astype(features.low.dtype)).astype(jnp.float32)
        one = jnp.ones((1,), bool)
        alone = Prompt(nothing, nothing[..., 0].astype(bool), dense, one, one)
        decoded = self._decode_prompt(features.low, features, alone, _padding(alone))
        pointer = self._pointer(decoded.tokens[:, 0], present & (decoded.object_score > 0))
        memory = self._memorise(features.low, low_res, present, jnp.ones((), bool))
        score = jnp.where(present, 10.0, -10.0)
        masks = jnp.broadcast_to(low_res[:, None], decoded.masks.shape)
        output = TrackOutput(low_res, jnp.ones((1,)), pointer, DecodedMasks(masks, jnp.ones_like(decoded.iou), decoded.tokens, score))
        own = state.of(index)
        return state.put(index, own.conditioned(slot).write(memory, pointer, slot)), output

    def track(self, features: FrameFeatures, hidden: jax.Array, clip_length: int | jax.Array, training: bool = False, remat: Remat = "none") -> TrackOutput:
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
        return self._output(self._decode(self._without_memory(low), features, hidden, jnp.ones((), bool)), training)

    def begin(self, state: TrackState, features: FrameFeatures, hidden: jax.Array) -> tuple[TrackState, TrackOutput]:
        """Find objects on the first frame by their hidden tokens [O, H, D]: what ``step`` does there, for callers that know which frame it is."""
        output = self.segment(features, hidden)
        memory = self._memorise(features.low, output.low_res, output.decoded.object_score > 0)
        return state.write(memory, output.pointer, jnp.int32(0)).advanced(), output

    def predict(self, features: FrameFeatures, prompt: Prompt) -> tuple[DecodedMasks, jax.Array]:
        """Segment objects of an image by prompts (reference: sam2/sam2_image_predictor.py), whether or not their scores say that they are there.

        Args:
            features: the image's, each array [1, ...].
            prompt: prompts of O objects.

        Returns:
            Four masks for each object, and which of them [O] is the answer: the single mask where it is asked for and stable, else the best of the others.
        """
        low = jnp.broadcast_to(self._without_memory(features.low), (prompt.tokens.shape[0], *features.low.shape[1:]))
        # The image predictor pads points by one padding point, and leaves a mask without points alone.
        pointed = jnp.any(prompt.valid, axis=1, keepdims=True)
        decoded = self._decode_prompt(low, features, prompt, jnp.concatenate([pointed, jnp.zeros_like(pointed)], axis=1))
        return decoded, self._choose(decoded, prompt.single)[1]

    def _without_memory(self, low: jax.Array) -> jax.Array:
        """Return features [B, g, g, D] as the mask decoder takes them where nothing is remembered."""
        return low + self.no_mem_embed[...].astype(low.dtype)[None]

    def _remember(self, state: TrackState, low: jax.Array) -> jax.Array:
        """Condition features ``low`` [1 or O, g, g, D] on the memories and pointers in slots that are not empty; returns [O, g, g, D]."""
        c, dtype = self.config, low.dtype
        tokens, recent = c.d_model // c.mem_dim, c.num_maskmem - 1
        state = state.nearest(recent)
        # The memory of a prompted frame takes the last row of the table, that of the frame k steps back row k - 1.
        age, chosen = state.ages(state.memory_frame), jnp.arange(state.memory.shape[0])[:, None] < state.conditioning
        visible = (state.memory_frame >= 0) & (chosen | (age >= 1) & (age <= recent))
        tpos = self.maskmem_tpos_enc[...][:, 0].astype(jnp.float32)[jnp.where(chosen, recent, jnp.clip(age - 1, 0, recent))]
        grid = rearrange(jnp.asarray(sine_grid(c.grid, c.mem_dim)), "row column d -> 1 1 (row column) d")
        memory = rearrange(state.memory, "slots o at d -> o (slots at) d")
        memory_pos = rearrange(grid + tpos, "slots o at d -> o (slots at) d")

        # Without the 1, padding frames after a single frame would divide by 0, and their NaN losses would stay NaN where they are multiplied by 0.
        reach = jnp.clip(state.clip_length - 1, 1, MAX_POINTERS - 1)
        age, chosen = state.ages(state.pointer_frame), jnp.arange(state.pointer.shape[0])[:, None] < state.conditioning
        pointing = (state.pointer_frame >= 0) & (chosen & (age >= 0) | (age >= 1) & (age < MAX_POINTERS))
        pointer_pos = self.obj_ptr_tpos_proj(sine_1d(age.astype(jnp.float32) / reach.astype(jnp.float32), c.d_model).astype(dtype))
        pointers = rearrange(state.pointer, "slots o (tokens d) -> o (slots tokens) d", d=c.mem_dim)
        pointer_pos = repeat(pointer_pos.astype(jnp.float32), "slots o d -> o (slots tokens) d", tokens=tokens)

        seen = repeat(visible, "slots o -> o (slots at)", at=c.grid**2), repeat(pointing, "slots o -> o (slots tokens)", tokens=tokens)
        return fold(self.memory_attention, state.frame)(
            low,
            jnp.concatenate([memory, pointers], axis=1),
            jnp.concatenate([memory_pos, pointer_pos], axis=1),
            jnp.concatenate(seen, axis=1).astype(jnp.int32),
            off_grid=state.pointer.shape[0] * tokens,
        )

    def _decode(self, conditioned: jax.Array, features: FrameFeatures, hidden: jax.Array | None, first: jax.Array) -> DecodedMasks:
        """Run the mask decoder on a prompt of two padding points and, where the boolean scalar ``first`` holds, the hidden tokens [O, H, D]."""
        encoder, (objects, *_, d), dtype = self.prompt_encoder, conditioned.shape, conditioned.dtype
        prompt = jnp.broadcast_to(encoder.not_a_point_embed[...][None].astype(dtype), (objects, 2, d))
        valid = jnp.ones((objects, 2), bool)
        if hidden is not None:
            prompt = jnp.concatenate([prompt, hidden.astype(dtype)], axis=1)
            valid = jnp.concatenate([valid, jnp.broadcast_to(first, hidden.shape[:2])], axis=1)
        image = conditioned + encoder.no_mask().astype(dtype)
        return self.mask_decoder(image, encoder.dense_pe(), prompt, valid, features.high0, features.high1)

    def _decode_prompt(self, conditioned: jax.Array, features: FrameFeatures, prompt: Prompt, padding: jax.Array) -> DecodedMasks:
        """Run the mask decoder on users' prompts and on padding points where ``padding`` [O, 2] holds: features [O, g, g, D] to four masks of each object."""
        encoder, (objects, *_, d), dtype = self.prompt_encoder, conditioned.shape, conditioned.dtype
        nothing = jnp.broadcast_to(encoder.not_a_point_embed[...][None].astype(dtype), (objects, 2, d))
        valid = jnp.concatenate([padding, prompt.valid], axis=1)
        dense = jnp.where(prompt.has_logits[:, None, None, None], encoder.masks(prompt.logits.astype(dtype)), encoder.no_mask().astype(dtype))
        tokens = jnp.concatenate([nothing, prompt.tokens.astype(dtype)], axis=1)
        return self.mask_decoder(conditioned + dense, encoder.dense_pe(), tokens, valid, features.high0, features.high1, single=True)

    def _output(self, decoded: DecodedMasks, training: bool) -> TrackOutput:
        """Choose of three masks the one with the highest predicted IoU."""
        present = decoded.object_score > 0
        masks = decoded.masks if training else jnp.where(present[:, None, None, None], decoded.masks, NO_OBJECT)
        best = jnp.argmax(decoded.iou, axis=1)
        return TrackOutput(_row(masks, best), _row(decoded.iou, best), self._pointer(_row(decoded.tokens, best), present), decoded)

    def _choose(self, decoded: DecodedMasks, single: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the best [O] of the last three of four masks, and the first where ``single`` [O] holds and it is stable, else the best
        (reference: mask_decoder.py, _dynamic_multimask_via_stability).
        """
        best = 1 + jnp.argmax(decoded.iou[:, 1:], axis=1)
        inner, outer = (jnp.sum(decoded.masks[:, 0] > delta, axis=(1, 2)) for delta in (STABILITY_DELTA, -STABILITY_DELTA))
        stable = jnp.where(outer > 0, inner / jnp.maximum(outer, 1), 1.0) >= STABILITY
        return best, jnp.where(single & stable, 0, best)

    def _output_of_four(self, decoded: DecodedMasks, single: jax.Array) -> TrackOutput:
        """Choose one of four masks. The pointer is made of the single mask's token where ``single`` [O] holds, even if another mask is chosen."""
        present = decoded.object_score > 0
        best, chosen = self._choose(decoded, single)
        low_res = jnp.where(present[:, None, None], _row(decoded.masks, chosen), NO_OBJECT)
        pointer = self._pointer(_row(decoded.tokens, jnp.where(single, 0, best)), present)
        return TrackOutput(low_res, _row(decoded.iou, chosen), pointer, decoded)

    def _pointer(self, tokens: jax.Array, present: jax.Array) -> jax.Array:
        """Map mask tokens [O, D] to object pointers [O, D]; objects that are not ``present`` [O] get one that says so."""
        return jnp.where(present[:, None], self.obj_ptr_proj(tokens), self.no_obj_ptr[...].astype(tokens.dtype))

    def _memorise(self, low: jax.Array, low_res: jax.Array, present: jax.Array, exact: jax.Array | None = None) -> jax.Array:
        """Return memory features [O, g * g, M] of a frame from its features [1 or O, g, g, D], masks [O, 4g, 4g], and which objects are there [O]."""
        c = self.config
        masks = resize_bilinear(low_res, (c.image_size, c.image_size))
        if exact is not None:
            masks = jnp.where(exact, jnp.where(masks > 0, jnp.inf, -jnp.inf), masks)
        memory = self.memory_encoder(low, masks)
        absent = (~present).astype(memory.dtype)[:, None, None]
        return rearrange(memory, "o row column d -> o (row column) d") + absent * self.no_obj_embed_spatial[...].astype(memory.dtype)[None]


def _padding(prompt: Prompt) -> jax.Array:
    """Return where the video predictor adds padding points [O, 2] to a prompt: one to points, and two where there are none."""
    lacking = ~jnp.any(prompt.valid, axis=1, keepdims=True)
    return jnp.concatenate([jnp.ones_like(lacking), lacking], axis=1)


def _row(array: jax.Array, index: jax.Array) -> jax.Array:
    """Return entry ``index`` [O] of the second axis of an array [O, n, ...] for each object."""
    return jnp.take_along_axis(array, index.reshape(-1, *[1] * (array.ndim - 1)), axis=1)[:, 0]
