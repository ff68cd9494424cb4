"""Moving batches to the devices of a mesh, and the sizes that rows must have there."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from unipixel_jax.batch import TrainBatch
from unipixel_jax.core.buckets import BucketTable
from unipixel_jax.core.mesh import devices_per_sample
from unipixel_jax.core.sharding import batch_spec


def to_devices(arrays: TrainBatch, mesh: Mesh) -> TrainBatch:
    """Return a batch on the devices of a mesh, its rows sharded over them; with several hosts ``arrays`` holds the rows of this host only."""

    def put(a: np.ndarray) -> jax.Array:
        return jax.make_array_from_process_local_data(NamedSharding(mesh, batch_spec(a.ndim)), a)

    return jax.tree.map(put, arrays)


def row_sizes(buckets: BucketTable, mesh: Mesh) -> tuple[BucketTable, int | None]:
    """Return the buckets of rows on a mesh, and into how many parts each row's frames are split (None for no split).

    Where several devices share a row, its frames are split among them, and its objects are padded to a multiple of their number.
    """
    shared = devices_per_sample(mesh)
    if shared == 1:
        return buckets, None
    return dataclasses.replace(buckets, objects=dataclasses.replace(buckets.objects, step=shared)), shared


def count_tokens(arrays: TrainBatch) -> int:
    """Return the number of tokens of all conversations, without padding."""
    return int(np.sum(arrays.inputs.segments > 0))
