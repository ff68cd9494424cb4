"""Batches on their way to the devices."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from unipixel_jax.batch import TrainBatch
from unipixel_jax.core.buckets import Ladders
from unipixel_jax.core.mesh import sharers
from unipixel_jax.core.sharding import batch_spec


def to_devices(arrays: TrainBatch, mesh: Mesh) -> TrainBatch:
    """A batch on the devices of a mesh, its rows sharded over them; with several hosts ``arrays`` are this one's rows."""

    def put(a: np.ndarray) -> jax.Array:
        return jax.make_array_from_process_local_data(NamedSharding(mesh, batch_spec(a.ndim)), a)

    return jax.tree.map(put, arrays)


def row_sizes(ladders: Ladders, mesh: Mesh) -> tuple[Ladders, int | None]:
    """The sizes of rows that the chips of a mesh share, and into how many parts each row's frames are divided (None: not at all). The objects of a row are
    filled up until they divide among its chips.
    """
    shared = sharers(mesh)
    if shared == 1:
        return ladders, None
    return dataclasses.replace(ladders, objects=dataclasses.replace(ladders.objects, step=shared)), shared


def count_tokens(arrays: TrainBatch) -> int:
    """Tokens of the conversations, without padding."""
    return int(np.sum(arrays.inputs.segments > 0))
