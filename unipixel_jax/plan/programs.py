"""The programs of a run, lowered for chips that may not be here: a step of training, prefill, decoding and tracking.

No arrays are made: weights, batch and caches are ``jax.ShapeDtypeStruct``s with shardings. The shapes of a batch are those that the data pipeline makes of a
clip.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from unipixel_jax.batch import ModelInputs, TrainBatch, row
from unipixel_jax.config import UniPixelConfig
from unipixel_jax.core.axes import HEADS, IMAGES, Axes
from unipixel_jax.core.buckets import BUCKETS, Buckets
from unipixel_jax.core.mesh import OnMesh, data_shards
from unipixel_jax.core.sharding import BATCH, mesh_axes, over_samples
from unipixel_jax.data.assemble import Sample
from unipixel_jax.data.batch import SINGLE, collate
from unipixel_jax.errors import UserError
from unipixel_jax.models.partition import partitioned
from unipixel_jax.models.qwen_vl.cache import KVCache
from unipixel_jax.models.sam2.track_state import TrackState
from unipixel_jax.models.unipixel import UniPixelModel, abstract_model
from unipixel_jax.processing.batch import Conversation, prepare_media
from unipixel_jax.processing.media import Clip
from unipixel_jax.train.feed import row_sizes
from unipixel_jax.train.setup import Layout
from unipixel_jax.train.step import make_gradients, make_update

T = TypeVar("T")

GRADIENTS, LANGUAGE, UPDATE, PREFILL, DECODE, TRACK = "gradients", "language part", "update", "prefill", "decode", "track"
"""The names of the programs.

``GRADIENTS`` computes the gradients of a batch (a step runs it as often as it accumulates) and ``LANGUAGE`` those of a batch with nothing to segment.
``UPDATE`` updates the weights. ``PREFILL`` reads a batch of prompts, ``DECODE`` makes one token of each answer, and ``TRACK`` tracks one frame of each clip.
"""
WORD = 1
"""A token without a special meaning; the sample's text consists of it."""


@dataclass(frozen=True)
class Workload:
    """What every sample holds.

    Attributes:
        frames: number of frames of the clip.
        tokens: number of tokens of the conversation, those of the clip included.
        objects: number of objects that are segmented.
        height, width: size of the clip in pixels.
    """

    frames: int = 8
    tokens: int = 2048
    objects: int = 5
    height: int = 720
    width: int = 1280


def sample_row(config: UniPixelConfig, workload: Workload, mesh: Mesh) -> TrainBatch:
    """Return one row of a batch, as the data pipeline makes it of a black clip for such a mesh.

    Raises:
        UserError: the clip alone takes more tokens than the conversation has.
    """
    frames = np.zeros((workload.frames, workload.height, workload.width, 3), np.uint8)
    clip = Clip(frames, np.arange(workload.frames), workload.frames == 1, "plan")
    media = prepare_media(clip, config, sample_frames=workload.frames, dtype=np.dtype(config.dtype))
    seen = len(media.patches) // config.vision.merge_unit
    words = workload.tokens - seen - workload.objects - 2
    if words < 1:
        least = workload.tokens + 1 - words
        raise UserError(f"{workload.tokens} tokens do not hold a clip of {workload.frames} frames: use at least {least}, or fewer frames")
    clip_ids = [config.vision_start_token_id, *[config.video_token_id] * seen, config.vision_end_token_id]
    ids, side = np.asarray([*clip_ids, *[WORD] * words, *[config.seg_token_id] * workload.objects], np.int32), config.sam2.image_size
    masks = np.zeros((workload.frames, workload.objects, side, side), bool)
    sample = Sample(Conversation(ids, media), ids, masks, "plan", "plan", "plan")
    tokens = Buckets("tokens", workload.tokens, 1.0, workload.tokens)
    buckets, parts = row_sizes(replace(BUCKETS, batch=SINGLE, tokens=tokens), mesh)
    return row(collate([sample], [[0]], 1, config, WORD, buckets, parts=parts), 0)


def train_programs(layout: Layout, batch: TrainBatch) -> Mapping[str, Callable[[], Any]]:
    """Return functions that lower the programs of a training step, by name: ``GRADIENTS``, ``LANGUAGE`` and ``UPDATE``.

    Args:
        layout: the run's mesh, weights and optimizer state.
        batch: shapes and shardings of a batch, from ``rows_like``.
    """
    everywhere = NamedSharding(layout.mesh, PartitionSpec())
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=everywhere)
    loss = jax.ShapeDtypeStruct((), jnp.float32, sharding=everywhere)
    own = layout.state.trained

    def gradients(batch: TrainBatch) -> Any:
        return make_gradients(layout).lower(own, layout.frozen, batch, key)

    return {
        GRADIENTS: lambda: gradients(batch),
        LANGUAGE: lambda: gradients(replace(batch, clips=None)),
        UPDATE: lambda: make_update(layout).lower(layout.state, own, loss),
    }


def inference_programs(
    config: UniPixelConfig, mesh: Mesh, batch_size: int, sample: TrainBatch, new_tokens: int = 512
) -> Mapping[str, Callable[[], Any]]:
    """Return functions that lower the programs of inference, by name: ``PREFILL``, ``DECODE`` and ``TRACK``.

    Args:
        config: the model's sizes, and the dtype of its weights.
        mesh: the mesh of chips.
        batch_size: number of prompts, or of clips, at a time.
        sample: what each prompt and clip holds, from ``sample_row``.
        new_tokens: slots of the cache beyond the prompt.

    Raises:
        UserError: the batch does not divide among the chips.
    """
    if batch_size % data_shards(mesh):
        raise UserError(f"{batch_size} prompts do not divide among the {data_shards(mesh)} parts of the mesh {dict(mesh.shape)}: use a multiple of that")
    dtype, text, sam = jnp.dtype(config.dtype), config.text, config.sam2
    model = partitioned(abstract_model(config), config, mesh, dtype)
    assert sample.clips is not None, "the sample has a clip"
    prompts = rows_like(sample.inputs, batch_size, mesh)
    slots = sample.inputs.input_ids.shape[1] + new_tokens

    def prefill(model: UniPixelModel, prompts: ModelInputs) -> tuple[jax.Array, KVCache]:
        def one(prompt: ModelInputs) -> tuple[jax.Array, KVCache]:
            cache = KVCache.empty(text, 1, slots, dtype)
            states, cache = model.text.extend(model.embed(prompt, dtype), prompt.position_ids, prompt.segments, cache, 0)
            return model.text.logits(states[:, -1]), cache

        return over_samples(one)(prompts)

    def decode(model: UniPixelModel, tokens: jax.Array, positions: jax.Array, caches: KVCache, at: jax.Array) -> tuple[jax.Array, KVCache]:
        def one(token: jax.Array, position: jax.Array, cache: KVCache) -> tuple[jax.Array, KVCache]:
            states, cache = model.text.extend(model.text.embed(token, dtype), position, jnp.ones((1, 1), jnp.int32), cache, at)
            return model.text.logits(states[:, -1]), cache

        return over_samples(one)(tokens, positions, caches)

    def track(model: UniPixelModel, states: TrackState, frames: jax.Array, hidden: jax.Array) -> tuple[TrackState, jax.Array]:
        def one(state: TrackState, frame: jax.Array, hidden: jax.Array) -> tuple[TrackState, jax.Array]:
            state, out = model.sam2.step(state, model.sam2.encode(frame), hidden)
            return state, out.low_res

        return over_samples(one)(states, frames, hidden)

    objects = sample.clips.valid.shape[1]
    cache = rows_like(jax.eval_shape(lambda: KVCache.empty(text, 1, slots, dtype)), batch_size, mesh, (None, None, None, HEADS))
    state = rows_like(jax.eval_shape(lambda: TrackState.empty(sam, objects, dtype)), batch_size, mesh, (None, IMAGES))
    one = jax.ShapeDtypeStruct
    token, position = one((1, 1), jnp.int32), one((3, 1, 1), jnp.int32)
    frame, hidden = one((1, sam.image_size, sam.image_size, 3), dtype), one((objects, config.sam2_hidden_tokens, sam.d_model), dtype)
    place = partial(rows_like, count=batch_size, mesh=mesh)
    at = one((), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec()))
    return {
        PREFILL: lambda: OnMesh(mesh, jax.jit(prefill)).lower(model, prompts),
        DECODE: lambda: OnMesh(mesh, jax.jit(decode, donate_argnums=3)).lower(model, place(token), place(position), cache, at),
        TRACK: lambda: OnMesh(mesh, jax.jit(track, donate_argnums=1)).lower(model, state, place(frame), place(hidden)),
    }


def rows_like(tree: T, count: int, mesh: Mesh, names: Axes = ()) -> T:
    """Return the shapes and shardings of a batch of samples.

    Args:
        tree: arrays, or shapes, of one sample.
        count: number of samples, which becomes a new first axis that is sharded over the parts of the mesh.
        mesh: the mesh of chips.
        names: the logical names of each array's axes; None for axes that are not sharded.
    """

    def place(a: Any) -> jax.ShapeDtypeStruct:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            own = [mesh_axes(name, length) or None for name, length in zip(names[: len(a.shape)], a.shape, strict=False)]
        return jax.ShapeDtypeStruct((count, *a.shape), a.dtype, sharding=NamedSharding(mesh, PartitionSpec(BATCH, *own)))

    return jax.tree.map(place, tree)
