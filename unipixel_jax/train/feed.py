"""Batches on their way to the devices."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from unipixel_jax.core.sharding import batch_spec
from unipixel_jax.data.batch import BatchArrays
from unipixel_jax.infer.inputs import prompt_arrays
from unipixel_jax.train.objective import TrainBatch, TrainClips


def to_batch(arrays: BatchArrays, mesh: Mesh) -> TrainBatch:
    """A batch on the devices of a mesh, its rows divided among them; with several hosts ``arrays`` are this one's rows."""
    names = [field.name for field in dataclasses.fields(TrainClips)]
    clips = None if arrays.clips is None else TrainClips(**{name: getattr(arrays.clips, name) for name in names})
    batch = TrainBatch(prompt_arrays(arrays.inputs), arrays.labels, arrays.label_weights, clips)  # type: ignore[arg-type]

    def put(a: np.ndarray) -> jax.Array:
        return jax.make_array_from_process_local_data(NamedSharding(mesh, batch_spec(a.ndim)), a)

    return jax.tree.map(put, batch)


def count_tokens(arrays: BatchArrays) -> int:
    """Tokens of the conversations, without padding."""
    return int(np.sum(arrays.inputs.segments > 0))
