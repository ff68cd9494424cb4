"""Batches on their way to the devices."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from unipixel_jax.data.batch import BatchArrays
from unipixel_jax.infer.inputs import to_prompt
from unipixel_jax.train.objective import TrainBatch, TrainClips


def to_batch(arrays: BatchArrays, mesh: Mesh) -> TrainBatch:
    """A batch on the devices of a mesh, its samples divided among them where their number allows it."""
    clips = None
    if arrays.clips is not None:
        clips = TrainClips(**{field.name: jnp.asarray(getattr(arrays.clips, field.name)) for field in dataclasses.fields(TrainClips)})
    batch = TrainBatch(to_prompt(arrays.inputs), jnp.asarray(arrays.labels), jnp.asarray(arrays.label_weights), clips)
    rows = len(arrays.labels)

    def put(a: jax.Array) -> jax.Array:
        """Rows of samples are the first axis; the rotary positions have theirs second. Tables over all samples together stay whole."""
        axis = next((i for i, n in enumerate(a.shape[:2]) if n == rows and rows % mesh.size == 0), None)
        spec = PartitionSpec() if axis is None or mesh.size == 1 else PartitionSpec(*[None] * axis, *mesh.axis_names)
        return jax.device_put(a, NamedSharding(mesh, spec))

    return jax.tree.map(put, batch)


def count_tokens(arrays: BatchArrays) -> int:
    """Tokens of the conversations, without padding."""
    return int(np.sum(arrays.inputs.segments > 0))
