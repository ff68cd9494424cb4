"""The programs of a step of training, lowered for chips that may not be here.

No arrays are made: weights and batch are ``jax.ShapeDtypeStruct``s with shardings. The shapes of a batch are those that the data pipeline makes of a clip.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from unipixel_jax.batch import TrainBatch, row
from unipixel_jax.config import UniPixelConfig
from unipixel_jax.core.axes import Axes
from unipixel_jax.core.buckets import BUCKETS, Buckets
from unipixel_jax.core.sharding import BATCH, mesh_axes
from unipixel_jax.data.assemble import Sample
from unipixel_jax.data.batch import SINGLE, collate
from unipixel_jax.errors import UserError
from unipixel_jax.processing.batch import Conversation, prepare_media
from unipixel_jax.processing.media import Clip
from unipixel_jax.train.feed import row_sizes
from unipixel_jax.train.setup import Layout
from unipixel_jax.train.step import make_gradients, make_update

T = TypeVar("T")

GRADIENTS, LANGUAGE, UPDATE = "gradients", "language part", "update"
"""The names of the programs. ``GRADIENTS`` computes the gradients of a batch (a step runs it as often as it accumulates) and ``LANGUAGE`` those of a batch with
nothing to segment. ``UPDATE`` updates the weights."""
TRAINING = (GRADIENTS, UPDATE, LANGUAGE)
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


def conversation_of(config: UniPixelConfig, workload: Workload) -> Conversation:
    """Return a conversation about a black clip, with as many tokens as the workload says.

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
    ids = np.asarray([*clip_ids, *[WORD] * words, *[config.seg_token_id] * workload.objects], np.int32)
    return Conversation(ids, media)


def sample_row(config: UniPixelConfig, workload: Workload, mesh: Mesh) -> TrainBatch:
    """Return one row of a batch, as the data pipeline makes it of a black clip for such a mesh.

    Raises:
        UserError: the clip alone takes more tokens than the conversation has.
    """
    conversation, side = conversation_of(config, workload), config.sam2.image_size
    masks = np.zeros((workload.frames, workload.objects, side, side), bool)
    sample = Sample(conversation, conversation.input_ids, masks, "plan", "plan", "plan")
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
