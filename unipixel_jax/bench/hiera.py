"""Attention in the windows of SAM 2.1's image trunk, from a block's normalised map to its projected results, as work for ``unipixel-jax bench attention``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from unipixel_jax.core.platform import platform
from unipixel_jax.models.sam2.hiera import Attention
from unipixel_jax.ops.attention import use_attention
from unipixel_jax.ops.attention.spec import Spec


@dataclass(frozen=True)
class MapWork:
    """The attention of one block of the trunk with its projections.

    Attributes:
        images: number of maps.
        side: of the maps, in pixels.
        window: side of the windows, in pixels.
        dim: features of the map.
        heads: number of heads, of 56 features each.
        pooled: whether queries are pooled, and results so.
        segments: 0, since windows have no mask with segments.
    """

    images: int
    side: int
    window: int
    dim: int
    heads: int
    pooled: bool = False
    segments: int = 0

    @property
    def features(self) -> int:
        """Features of the results."""
        return 56 * self.heads

    def spec(self, dtype: jnp.dtype) -> Spec:
        """What a backend is asked for windows as rows of a batch, for the platform of the mesh that is set."""
        keys = self.window**2
        rows = self.images * (-(-self.side // self.window)) ** 2
        return Spec(rows, keys // 4 if self.pooled else keys, keys, self.heads, self.heads, 56, 56, dtype, False, False, platform())

    def flops(self, backward: bool) -> float:
        """Return the FLOPs of projections and scores; backward twice as many, and the scores again."""
        projections = 2 * self.images * self.side**2 * self.features * (3 * self.dim + self.features / (4 if self.pooled else 1))
        scores = 4 * self.spec(jnp.dtype(jnp.bfloat16)).scores * 56
        return projections + scores + (2 * projections + 2.5 * scores if backward else 0)

    def nbytes(self, itemsize: int, backward: bool) -> float:
        """Return the bytes that must move if each product and attention read their operands and write their results once; weights are left out."""
        results = self.features / (4 if self.pooled else 1)
        maps = self.dim + 2 * 3 * self.features + 3 * results
        gradients = 2 * self.dim + 4 * 3 * self.features + 4 * results
        return self.images * self.side**2 * itemsize * (maps + (gradients if backward else 0))

    def arguments(self, dtype: jnp.dtype) -> tuple[Any, ...]:
        """Return the shapes of the weights and of the map."""
        state = nnx.state(nnx.eval_shape(lambda: Attention(self.dim, self.features, self.heads, nnx.Rngs(0))))
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, dtype), state), jax.ShapeDtypeStruct((self.images, self.side, self.side, self.dim), dtype)

    def run(self, backend: str) -> Callable[..., jax.Array]:
        """Return a function of the arguments."""
        graph = nnx.graphdef(nnx.eval_shape(lambda: Attention(self.dim, self.features, self.heads, nnx.Rngs(0))))

        def attention(state: Any, x: jax.Array) -> jax.Array:
            with use_attention(backend):
                out: jax.Array = nnx.merge(graph, state)(x, self.window, self.pooled)
                return out

        return attention


MAPS = {
    "Hiera 1, windows of 8": MapWork(8, 192, 8, 112, 2),
    "Hiera 2, entry": MapWork(8, 192, 8, 112, 4, pooled=True),
    "Hiera 2, windows of 4": MapWork(8, 96, 4, 224, 4),
    "Hiera 3, entry": MapWork(8, 96, 4, 224, 8, pooled=True),
    "Hiera 3, windows of 14": MapWork(8, 48, 14, 448, 8),
    "Hiera 4, entry": MapWork(8, 48, 14, 448, 16, pooled=True),
    "Hiera 4, windows of 7": MapWork(8, 24, 7, 896, 16),
}
"""The blocks with windows of SAM 2.1 base+ at 768 pixels by name, for eight frames."""
