"""Tables with a row for each token of the vocabulary, divided over devices: the tokens of all devices go to the rows, and not the rows to the devices.

A batch has fewer tokens than the vocabulary has rows, unless very many devices divide one table. No device ever holds a table, or its gradient, whole.

V rows of the table, v of them on this device, n tokens of this device, N of all devices that divide the table.
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

DIVIDING = (*WEIGHTS, TENSOR)
"""Along these devices divide tables; along ``tensor`` they hold the same tokens, along the others they hold other ones."""
TABLE = PartitionSpec(DIVIDING)
"""The place of a table."""


@dataclass(frozen=True)
class Vocabulary:
    """Which devices hold a sharded table, and their collective operations, all of which do nothing where there is one device. All methods but ``of``,
    ``pad_to_multiple`` and ``run`` are called inside functions that ``run`` runs on every device.

    Attributes:
        mesh: the devices; None for one, or for several that do not divide tables.
        rows: V, before the table is filled up to divide among them.
    """

    mesh: AbstractMesh | None
    rows: int

    @classmethod
    def of(cls, table: jax.Array) -> Vocabulary:
        """That of a table [V, D], on the mesh that is set."""
        mesh = current_mesh()
        return cls(mesh if mesh is not None and devices_along(mesh, DIVIDING) > 1 else None, table.shape[0])

    def pad_to_multiple(self, table: jax.Array) -> jax.Array:
        """The table with rows added until they divide."""
        return pad_to_multiple(table, DIVIDING)

    def run(self, function: Callable[..., Any], ins: tuple[PartitionSpec, ...], outs: Any) -> Callable[..., Any]:
        """The function on every device, of its part of the arrays."""
        return function if self.mesh is None else jax.shard_map(function, mesh=self.mesh, in_specs=ins, out_specs=outs, check_vma=False)

    def all_gathered(self, x: jax.Array) -> jax.Array:
        """Of tokens [n, ...], those of all devices that divide the table and hold other tokens: [N, ...]."""
        return x if self.mesh is None else jax.lax.all_gather(x, WEIGHTS, tiled=True)

    def summed(self, x: jax.Array) -> jax.Array:
        """Of what each device's rows give for all tokens [N, ...], the sums for this device's: [n, ...]."""
        return x if self.mesh is None else jax.lax.psum(jax.lax.psum_scatter(x, WEIGHTS, tiled=True), TENSOR)

    def largest(self, x: jax.Array) -> jax.Array:
        """Of what each device's rows give for all tokens, the largest."""
        return x if self.mesh is None else jax.lax.pmax(x, DIVIDING)

    def own(self, x: jax.Array, count: int) -> jax.Array:
        """Of what is known for all tokens [N, ...], this device's ``count``."""
        return x if self.mesh is None else jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(WEIGHTS) * count, count)

    def sum(self, x: jax.Array, *axes: str) -> jax.Array:
        """Over mesh axes."""
        return x if self.mesh is None else jax.lax.psum(x, axes)

    def first(self, count: int) -> jax.Array | int:
        """The number of the first of this device's ``count`` rows."""
        return 0 if self.mesh is None else jax.lax.axis_index(DIVIDING) * count

    def place(self, ids: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
        """Whether each token's row is among this device's ``count``, and which of them it is (any where it is not)."""
        row = ids - self.first(count)
        return (row >= 0) & (row < count), jnp.clip(row, 0, count - 1)
