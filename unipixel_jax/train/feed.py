"""Batches on their way to the devices."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from unipixel_jax.core.buckets import Ladders
from unipixel_jax.core.mesh import sharers
from unipixel_jax.core.sharding import batch_spec
from unipixel_jax.data.batch import BatchArrays
from unipixel_jax.infer.inputs import prompt_arrays
from unipixel_jax.train.objective import TrainBatch, TrainClips


def host_batch(arrays: BatchArrays) -> TrainBatch:
    """A batch in the form that the objective takes, still on the host."""
    names = [field.name for field in dataclasses.fields(TrainClips)]
    clips = None if arrays.clips is None else TrainClips(**{name: getattr(arrays.clips, name) for name in names})
    return TrainBatch(prompt_arrays(arrays.inputs), arrays.labels, arrays.label_weights, clips)  # type: ignore[arg-type]


def to_batch(arrays: BatchArrays, mesh: Mesh) -> TrainBatch:
    """A batch on the devices of a mesh, its rows divided among them; with several hosts ``arrays`` are this one's rows."""

    def put(a: np.ndarray) -> jax.Array:
        return jax.make_array_from_process_local_data(NamedSharding(mesh, batch_spec(a.ndim)), a)

    return jax.tree.map(put, host_batch(arrays))


def row_sizes(ladders: Ladders, mesh: Mesh) -> tuple[Ladders, int | None]:
    """The sizes of rows that the chips of a mesh share, and into how many parts each row's frames are divided (None: not at all). The objects of a row are
    filled up until they divide among its chips.
    """
    shared = sharers(mesh)
    if shared == 1:
        return ladders, None
    return dataclasses.replace(ladders, objects=dataclasses.replace(ladders.objects, step=shared)), shared


def count_tokens(arrays: BatchArrays) -> int:
    """Tokens of the conversations, without padding."""
    return int(np.sum(arrays.inputs.segments > 0))
