"""Tables with a row for each token of the vocabulary, sharded over devices: the tokens of all devices are sent to the rows, and not the rows to the devices.

That moves fewer bytes, because a batch has fewer tokens than the vocabulary has rows, unless very many devices share one table. No device ever holds a
table, or its gradient, whole.

V rows of the table, v of them on this device; n tokens of this device, N of all devices that share the table and hold different tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec

from unipixel_jax.core.mesh import TENSOR, WEIGHTS, devices_along
from unipixel_jax.core.sharding import current_mesh, pad_to_multiple

TABLE_AXES = (*WEIGHTS, TENSOR)
"""The mesh axes over which the rows of a table are sharded. Devices along ``tensor`` hold the same tokens, devices along the others hold different ones."""
TABLE = PartitionSpec(TABLE_AXES)
"""The PartitionSpec of a table."""


@dataclass(frozen=True)
class Vocabulary:
    """Which devices hold a sharded table, and the collective operations among them. All of them return their input where there is no such mesh.

    All methods but ``of``, ``pad_to_multiple`` and ``shard_map`` are called inside functions that ``shard_map`` runs on every device.

    Attributes:
        mesh: the mesh over which the table is sharded; None where it lies whole on each device.
        rows: V, without the rows that ``pad_to_multiple`` adds.
    """

    mesh: AbstractMesh | None
    rows: int

    @classmethod
    def of(cls, table: jax.Array) -> Vocabulary:
        """Return the vocabulary of a table [V, D] on the mesh that is set."""
        mesh = current_mesh()
        return cls(mesh if mesh is not None and devices_along(mesh, TABLE_AXES) > 1 else None, table.shape[0])

    def pad_to_multiple(self, table: jax.Array) -> jax.Array:
        """Append rows of zeros to a table [V, D], until the number of rows is a multiple of the number of devices that share it."""
        return pad_to_multiple(table, TABLE_AXES)

    def shard_map(self, function: Callable[..., Any], in_specs: tuple[PartitionSpec, ...], out_specs: Any) -> Callable[..., Any]:
        """Return a function of whole arrays that runs ``function`` on every device with its shards of them; without a mesh, ``function`` itself."""
        return function if self.mesh is None else jax.shard_map(function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)

    def all_gather(self, x: jax.Array) -> jax.Array:
        """Gather what belongs to tokens, [n, ...] on each device, to [N, ...] on all devices that share the table."""
        return x if self.mesh is None else jax.lax.all_gather(x, WEIGHTS, tiled=True)

    def reduce_scatter_sum(self, x: jax.Array) -> jax.Array:
        """Sum over the devices what each computed with its rows for all tokens [N, ...]; returns the sums for this device's tokens [n, ...]."""
        return x if self.mesh is None else jax.lax.psum(jax.lax.psum_scatter(x, WEIGHTS, tiled=True), TENSOR)

    def max_over_devices(self, x: jax.Array) -> jax.Array:
        """Return the elementwise maximum over the devices of what each computed with its rows for all tokens; same shape and dtype."""
        return x if self.mesh is None else jax.lax.pmax(x, TABLE_AXES)

    def local_tokens(self, x: jax.Array, count: int) -> jax.Array:
        """Return the entries of this device's ``count`` tokens from an array over all tokens: [N, ...] to [count, ...]."""
        return x if self.mesh is None else jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(WEIGHTS) * count, count)

    def sum_over(self, x: jax.Array, *axes: str) -> jax.Array:
        """Sum over the devices along mesh axes; same shape and dtype."""
        return x if self.mesh is None else jax.lax.psum(x, axes)

    def first_row(self, count: int) -> jax.Array | int:
        """Return the index in the table of the first of this device's ``count`` rows."""
        return 0 if self.mesh is None else jax.lax.axis_index(TABLE_AXES) * count

    def local_rows(self, ids: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
        """Find the rows of tokens among the ``count`` rows of this device.

        Args:
            ids: [...] integers in 0..V-1.
            count: v.

        Returns:
            [...] booleans, whether this device has the row; and [...] indices among its rows, in range but meaningless where it has not.
        """
        row = ids - self.first_row(count)
        return (row >= 0) & (row < count), jnp.clip(row, 0, count - 1)
