"""The parts of inference as pure functions of arrays, each with fixed shapes, from which a runtime puts segmenting and tracking together.

T prompt tokens, S slots of the cache, M merged vision tokens, O objects, P points, L layers, K key heads, H head size, D language width, d SAM width, g side of
the feature grid, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unipixel_jax.batch import ModelInputs, References, VisionTables
from unipixel_jax.export.shapes import Shapes
from unipixel_jax.infer.generate import states_before
from unipixel_jax.models.qwen_vl.cache import KVCache, LayerCache
from unipixel_jax.models.sam2.neck import FrameFeatures
from unipixel_jax.models.sam2.track_state import FORWARD, TrackState
from unipixel_jax.models.sam2.tracker import Prompt
from unipixel_jax.models.unipixel import UniPixelModel
from unipixel_jax.ops.attention import AttnMask, attention
from unipixel_jax.processing.batch import empty_inputs

F32, I32 = jnp.dtype("float32"), jnp.dtype("int32")
Spec = jax.ShapeDtypeStruct
FEATURES, STATE = ("high0", "high1", "low"), ("memory", "memory_frame", "pointer", "pointer_frame")
"""The names of a frame's features, and of the arrays of a tracker's state."""
NEXT = tuple(f"next_{name}" for name in STATE)
"""The names of the state's arrays after a frame."""
MASKS = ("low_res", "iou", "presence")
"""What is known of objects on a frame: logits of masks, predicted IoU, logits of their being there."""
PROMPT = ("input_ids", "segments", "position_ids", "vision_slots", "reference_slots", "memory_rows", "memory_slots", "seg_positions")
"""The fields of ``batch.ModelInputs`` that reading a prompt needs, beside its points and boxes."""


@dataclass(frozen=True)
class Part:
    """A part of inference.

    Attributes:
        name: its name.
        function: a pure function of the inputs, by position, that returns the outputs as a tuple.
        inputs: shapes and dtypes of the inputs, in order.
        outputs: the names of the outputs, in order.
    """

    name: str
    function: Callable[..., tuple[jax.Array, ...]]
    inputs: Mapping[str, jax.ShapeDtypeStruct]
    outputs: tuple[str, ...]


def make_parts(model: UniPixelModel, shapes: Shapes) -> dict[str, Part]:
    """Return all parts of a model, by name.

    Args:
        model: its weights in float32, with unstacked towers (``unstack_towers``), so that no part has a loop.
        shapes: the sizes of what goes in.

    Raises:
        UserError: the model cannot have such shapes.
    """
    makers = (_encode, _prompt, _decode, _first_frame, _track, _vision, _prefill, _step)
    return {part.name: part for part in (make(model, shapes) for make in makers)}


def _encode(model: UniPixelModel, shapes: Shapes) -> Part:
    """SAM's image encoder: a normalised frame to its features."""
    side = model.config.sam2.image_size

    def run(frame: jax.Array) -> tuple[jax.Array, ...]:
        features = model.sam2.encode(frame)
        return features.high0, features.high1, features.low

    return Part("encode", run, {"frame": Spec((1, side, side, 3), F32)}, FEATURES)


def _prompt(model: UniPixelModel, shapes: Shapes) -> Part:
    """The states that predicted ``<|seg|>`` to the hidden tokens that prompt the mask decoder."""
    states = {"states": Spec((shapes.objects, model.config.text.hidden_size), F32)}
    return Part("prompt", lambda states: (model.seg_head(states),), states, ("hidden_tokens",))


def _decode(model: UniPixelModel, shapes: Shapes) -> Part:
    """Points and boxes on an image to masks, without words and without memory (``Sam2.predict``)."""
    sam, count, side = model.sam2, shapes.objects, 4 * model.config.sam2.grid

    def run(high0: jax.Array, high1: jax.Array, low: jax.Array, points: jax.Array, labels: jax.Array) -> tuple[jax.Array, ...]:
        no, clear = jnp.zeros((count,), bool), jnp.sum((labels >= 0).astype(jnp.int32), axis=1) > 1
        prompt = Prompt(sam.prompt_encoder.points(points, labels), labels >= 0, jnp.zeros((count, side, side)), no, clear)
        decoded, chosen = sam.predict(FrameFeatures(high0, high1, low), prompt)
        return decoded.masks, decoded.iou, chosen.astype(jnp.int32)

    given = {"points": Spec((count, shapes.points, 2), F32), "labels": Spec((count, shapes.points), I32)}
    return Part("decode", run, _features(model) | given, ("masks", "iou", "chosen"))


def _first_frame(model: UniPixelModel, shapes: Shapes) -> Part:
    """The objects of hidden tokens on the first frame, and the state after it."""
    c = model.config

    def run(high0: jax.Array, high1: jax.Array, low: jax.Array, hidden: jax.Array) -> tuple[jax.Array, ...]:
        state, out = model.sam2.begin(TrackState.empty(c.sam2, shapes.objects, F32), FrameFeatures(high0, high1, low), hidden)
        return out.low_res, out.iou, out.decoded.object_score, *_arrays(state)

    hidden = {"hidden_tokens": Spec((shapes.objects, c.sam2_hidden_tokens, c.sam2.d_model), F32)}
    return Part("first_frame", run, _features(model) | hidden, (*MASKS, *NEXT))


def _track(model: UniPixelModel, shapes: Shapes) -> Part:
    """One step of the tracker: the state and a frame's features to masks and the next state."""

    def run(high0: jax.Array, high1: jax.Array, low: jax.Array, frame: jax.Array, clip_length: jax.Array, *arrays: jax.Array) -> tuple[jax.Array, ...]:
        memory, memory_frame, pointer, pointer_frame = arrays
        state = TrackState(memory, memory_frame, pointer, pointer_frame, frame, jnp.int32(FORWARD), clip_length, conditioning=1)
        state, out = model.sam2.step(state, FrameFeatures(high0, high1, low))
        return out.low_res, out.iou, out.decoded.object_score, *_arrays(state)

    state = jax.eval_shape(lambda: TrackState.empty(model.config.sam2, shapes.objects, F32))
    inputs = _features(model) | {"frame": Spec((), I32), "clip_length": Spec((), I32)} | dict(zip(STATE, _arrays(state), strict=True))
    return Part("track", run, inputs, (*MASKS, *NEXT))


def _vision(model: UniPixelModel, shapes: Shapes) -> Part:
    """The vision tower: patches and their index tables to vision tokens."""
    inputs = _inputs_like(model, shapes)

    def run(patches: jax.Array, *tables: jax.Array) -> tuple[jax.Array, ...]:
        return model.encode_images(patches, VisionTables(*tables))

    tables = {name: _spec(array) for name, array in vars(inputs.vision).items()}
    return Part("vision", run, {"patches": _spec(inputs.patches)} | tables, ("vision_tokens", "merger_input"))


def _prefill(model: UniPixelModel, shapes: Shapes) -> Part:
    """A prompt with its vision tokens to the scores of the next token, and the keys and values of the prompt."""
    inputs, c = _inputs_like(model, shapes), model.config
    merged = inputs.patches.shape[0] // c.vision.merge_unit
    references = {f"reference_{name}": _spec(array) for name, array in vars(inputs.references).items()}

    def run(vision_tokens: jax.Array, merger_input: jax.Array, *arrays: jax.Array) -> tuple[jax.Array, ...]:
        own: dict[str, Any] = dict(zip(PROMPT, arrays, strict=False))
        given = replace(inputs, references=References(*arrays[len(PROMPT) :]), **own)
        x = model.fill_images(model.text.embed(given.input_ids, F32), vision_tokens, given.vision_slots)
        x = model.fill_words(x, given, merger_input)
        empty = _BesideCache.empty(model, given.segments)
        states, k, v = _layers(model, x, given.position_ids, given.segments, empty)
        return model.text.logits(states[:, -1]), states[:, -1], states_before(states, given.seg_positions), k, v

    vision = {"vision_tokens": Spec((merged, c.text.hidden_size), F32), "merger_input": Spec((merged, c.vision.merge_dim), F32)}
    prompt = {name: _spec(getattr(inputs, name)) for name in PROMPT}
    return Part("prefill", run, vision | prompt | references, ("logits", "state", "prompt_states", "keys", "values"))


def _step(model: UniPixelModel, shapes: Shapes) -> Part:
    """A token and the cache to the scores of the next token, and the token's own keys and values, which the caller writes to a free slot of the cache."""
    c = model.config.text
    slots = shapes.slots(model.config)
    cache = Spec((c.num_hidden_layers, 1, c.num_key_value_heads, slots, c.head_dim), F32)

    def run(token: jax.Array, position: jax.Array, held: jax.Array, keys: jax.Array, values: jax.Array) -> tuple[jax.Array, ...]:
        own = jnp.ones((1, 1), jnp.int32)
        caches = _BesideCache.of(keys, values, jnp.concatenate([held, own], axis=1))
        positions = jnp.broadcast_to(position[None, None, None], (3, 1, 1))
        states, k, v = _layers(model, model.text.embed(token[None, None], F32), positions, own, caches)
        return model.text.logits(states[:, -1]), states[:, -1], k, v

    inputs = {"token": Spec((), I32), "position": Spec((), I32), "held": Spec((1, slots), I32), "keys": cache, "values": cache}
    return Part("step", run, inputs, ("logits", "state", "key", "value"))


@dataclass(frozen=True)
class _BesideCache(LayerCache):
    """The view of a layer's slots in which new keys and values are put beside the slots instead of into them, so that no part writes to a large array.

    The cache has one layer; its ``segments`` [B, S + T] are those of the slots and the new tokens.
    """

    read: bool = True

    @classmethod
    def of(cls, keys: jax.Array, values: jax.Array, segments: jax.Array) -> list[_BesideCache]:
        """Return the view of each layer of keys and values [L, B, K, S, H]."""
        return [cls(KVCache(keys[i : i + 1], values[i : i + 1], segments), 0, 0) for i in range(keys.shape[0])]

    @classmethod
    def empty(cls, model: UniPixelModel, segments: jax.Array) -> list[_BesideCache]:
        """Return views of no slots, one for each layer, to tokens of ``segments`` [B, T] that attend to each other."""
        c = model.config.text
        none = jnp.zeros((1, segments.shape[0], c.num_key_value_heads, 0, c.head_dim), F32)
        return [cls(KVCache(none, none, segments), 0, 0, read=False)] * c.num_hidden_layers

    @property
    def is_read(self) -> bool:
        """See ``LayerCache``."""
        return self.read

    def write(self, k: jax.Array, v: jax.Array) -> LayerCache:
        """Return the view with keys and values [B, T, K, H] behind those of the slots."""

        def behind(buffer: jax.Array, new: jax.Array) -> jax.Array:
            new = new.swapaxes(1, 2)[None]
            return jnp.concatenate([buffer, new], axis=3) if buffer.shape[3] else new

        return replace(self, cache=KVCache(behind(self.cache.k, k), behind(self.cache.v, v), self.cache.segments))

    def attend(self, q: jax.Array, segments: jax.Array) -> jax.Array:
        """Attend from one new token to all that the view holds; see ``LayerCache``."""
        k, v = (buffer[0].swapaxes(1, 2) for buffer in (self.cache.k, self.cache.v))
        return attention(q, k, v, AttnMask(q_segments=segments, kv_segments=self.cache.segments))


def _layers(
    model: UniPixelModel, x: jax.Array, position_ids: jax.Array, segments: jax.Array, caches: Sequence[LayerCache]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Run the language model's layers on x [B, T, D]; returns states [B, T, D], and the new tokens' keys and values [L, B, K, T, H]."""
    rope, new = model.text.rope(position_ids), []
    blocks: Any = model.text.blocks
    for block, cache in zip(blocks, caches, strict=True):
        x, held = block(x, rope, segments, cache)
        new.append((held.cache.k[0, :, :, -x.shape[1] :], held.cache.v[0, :, :, -x.shape[1] :]))
    keys, values = (jnp.stack(own) for own in zip(*new, strict=True))
    return x, keys, values


def _inputs_like(model: UniPixelModel, shapes: Shapes) -> ModelInputs:
    """Return a prompt that holds nothing but padding, in the shapes of the parts."""
    return empty_inputs(shapes.sizes(model.config), model.config, 0, np.dtype(np.float32))


def _features(model: UniPixelModel) -> dict[str, jax.ShapeDtypeStruct]:
    g, d = model.config.sam2.grid, model.config.sam2.d_model
    return {"high0": Spec((1, 4 * g, 4 * g, d // 8), F32), "high1": Spec((1, 2 * g, 2 * g, d // 4), F32), "low": Spec((1, g, g, d), F32)}


def _arrays(state: TrackState) -> tuple[Any, ...]:
    return tuple(getattr(state, name) for name in STATE)


def _spec(array: Any) -> jax.ShapeDtypeStruct:
    return Spec(array.shape, array.dtype)
