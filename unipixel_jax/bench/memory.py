"""SAM 2.1's memory attention for several objects on a frame, as it trains, as work for ``unipixel-jax bench attention``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from unipixel_jax.config import SAM2_SIZES, Sam2Config
from unipixel_jax.core.dropout import with_keys
from unipixel_jax.core.platform import platform
from unipixel_jax.models.sam2.memory import MemoryAttention
from unipixel_jax.models.sam2.track_state import MAX_POINTERS
from unipixel_jax.ops.attention import use_attention
from unipixel_jax.ops.attention.spec import Spec


@dataclass(frozen=True)
class MemoryWork:
    """All layers of the memory attention, with dropout, and with a full memory.

    Attributes:
        objects: number of objects that are tracked together.
        sam: the sizes of SAM.
        segments: 1, since all memories are of one segment.
    """

    objects: int
    sam: Sam2Config = SAM2_SIZES["base_plus"]
    segments: int = 1

    @property
    def pointers(self) -> int:
        """The number of tokens that are object pointers."""
        return MAX_POINTERS * self.sam.d_model // self.sam.mem_dim

    @property
    def memories(self) -> int:
        """The number of tokens of the memory."""
        return self.sam.num_maskmem * self.sam.grid**2 + self.pointers

    def spec(self, dtype: jnp.dtype) -> Spec:
        """What a backend is asked for the memories on the grid, for the platform of the mesh that is set."""
        cells = self.sam.grid**2
        sizes = self.objects, cells, self.sam.num_maskmem * cells, 1, 1, self.sam.d_model, self.sam.mem_dim + 1
        return Spec(*sizes, dtype, False, True, platform(), dropout=True, joined=True)

    def flops(self, backward: bool) -> float:
        """Return the FLOPs of scores and weighted values of attention to the memory; backward they are computed again, and the gradient of the values."""
        per_layer = 2 * self.objects * self.sam.grid**2 * self.memories * (self.sam.d_model + self.sam.mem_dim)
        return self.sam.memory_attention_layers * per_layer * (3 if backward else 1)

    def nbytes(self, itemsize: int, backward: bool) -> float:
        """Return the bytes that must move if each layer reads the memory once; backward twice more, and its gradient is written."""
        return self.sam.memory_attention_layers * self.objects * self.memories * self.sam.mem_dim * itemsize * (4 if backward else 1)

    def arguments(self, dtype: jnp.dtype) -> tuple[Any, ...]:
        """Return the shapes of the weights, of the frame's features and of the memory."""
        shape, side = jax.ShapeDtypeStruct, self.sam.grid
        weights = jax.tree.map(lambda a: shape(a.shape, jnp.float32), nnx.state(self._abstract()))
        return weights, shape((1, side, side, self.sam.d_model), dtype), shape((self.objects, self.memories, self.sam.mem_dim), dtype)

    def run(self, backend: str) -> Callable[..., jax.Array]:
        """Return a function of the arguments, whose backward pass computes it again, as in training."""
        graph = nnx.graphdef(self._abstract())

        @jax.checkpoint
        def attend(weights: Any, low: jax.Array, memory: jax.Array) -> jax.Array:
            with use_attention(backend):
                layers = with_keys(nnx.merge(graph, weights), jax.random.key(0))
                position = jnp.zeros(memory.shape, jnp.float32)
                out: jax.Array = layers(low, memory, position, jnp.ones(memory.shape[:2], jnp.int32), self.pointers)
                return out

        return attend

    def _abstract(self) -> MemoryAttention:
        return nnx.eval_shape(lambda: MemoryAttention(self.sam, nnx.Rngs(0)))


MEMORY = {"SAM memory attention, 5 objects": MemoryWork(5)}
"""The memory attention of SAM 2.1 base+ at 768 pixels by name."""
