"""Tables with a row for each token of the vocabulary, divided over chips: the tokens of all chips go to the rows, and not the rows to the chips.

A batch has fewer tokens than the vocabulary has rows, unless very many chips divide one table. No chip ever holds a table, or its gradient, whole.

V rows of the table, v of them on this chip, n tokens of this chip, N of all chips that divide the table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec

from unipixel_jax.core.mesh import TENSOR, WEIGHTS, chips_along
from unipixel_jax.core.sharding import current_mesh, filled_up

DIVIDING = (*WEIGHTS, TENSOR)
"""Along these chips divide tables; along ``tensor`` they hold the same tokens, along the others they hold other ones."""
TABLE = PartitionSpec(DIVIDING)
"""The place of a table."""


@dataclass(frozen=True)
class Vocabulary:
    """Who divides a table, and what they tell each other; alone, a chip does nothing of that. All but ``of``, ``filled_up`` and ``run`` is for functions
    that ``run`` has on every chip.

    Attributes:
        mesh: the chips; None for one, or for several that do not divide tables.
        rows: V, before the table is filled up to divide among them.
    """

    mesh: AbstractMesh | None
    rows: int

    @classmethod
    def of(cls, table: jax.Array) -> Vocabulary:
        """That of a table [V, D], on the mesh that is set."""
        mesh = current_mesh()
        return cls(mesh if mesh is not None and chips_along(mesh, DIVIDING) > 1 else None, table.shape[0])

    def filled_up(self, table: jax.Array) -> jax.Array:
        """The table with rows added until they divide."""
        return filled_up(table, DIVIDING)

    def run(self, function: Callable[..., Any], ins: tuple[PartitionSpec, ...], outs: Any) -> Callable[..., Any]:
        """The function on every chip, of its part of the arrays."""
        return function if self.mesh is None else jax.shard_map(function, mesh=self.mesh, in_specs=ins, out_specs=outs, check_vma=False)

    def collected(self, x: jax.Array) -> jax.Array:
        """Of tokens [n, ...], those of all chips that divide the table and hold other tokens: [N, ...]."""
        return x if self.mesh is None else jax.lax.all_gather(x, WEIGHTS, tiled=True)

    def summed(self, x: jax.Array) -> jax.Array:
        """Of what each chip's rows give for all tokens [N, ...], the sums for this chip's: [n, ...]."""
        return x if self.mesh is None else jax.lax.psum(jax.lax.psum_scatter(x, WEIGHTS, tiled=True), TENSOR)

    def largest(self, x: jax.Array) -> jax.Array:
        """Of what each chip's rows give for all tokens, the largest."""
        return x if self.mesh is None else jax.lax.pmax(x, DIVIDING)

    def own(self, x: jax.Array, count: int) -> jax.Array:
        """Of what is known for all tokens [N, ...], this chip's ``count``."""
        return x if self.mesh is None else jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(WEIGHTS) * count, count)

    def sum(self, x: jax.Array, *axes: str) -> jax.Array:
        """Over mesh axes."""
        return x if self.mesh is None else jax.lax.psum(x, axes)

    def first(self, count: int) -> jax.Array | int:
        """The number of the first of this chip's ``count`` rows."""
        return 0 if self.mesh is None else jax.lax.axis_index(DIVIDING) * count

    def place(self, ids: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
        """Whether each token's row is among this chip's ``count``, and which of them it is (any where it is not)."""
        row = ids - self.first(count)
        return (row >= 0) & (row < count), jnp.clip(row, 0, count - 1)
