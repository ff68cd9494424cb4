"""Batches on their way to the devices."""

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
    """A batch on the devices of a mesh, its rows sharded over them; with several hosts ``arrays`` are this one's rows."""

    def put(a: np.ndarray) -> jax.Array:
        return jax.make_array_from_process_local_data(NamedSharding(mesh, batch_spec(a.ndim)), a)

    return jax.tree.map(put, arrays)


def row_sizes(buckets: BucketTable, mesh: Mesh) -> tuple[BucketTable, int | None]:
    """The sizes of rows that the devices of a mesh share, and into how many parts each row's frames are divided (None: not at all). The objects of a row are
    filled up until they divide among its devices.
    """
    shared = devices_per_sample(mesh)
    if shared == 1:
        return buckets, None
    return dataclasses.replace(buckets, objects=dataclasses.replace(buckets.objects, step=shared)), shared


def count_tokens(arrays: TrainBatch) -> int:
    """Tokens of the conversations, without padding."""
    return int(np.sum(arrays.inputs.segments > 0))
