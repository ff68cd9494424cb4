"""Which attention weights are dropped while training, told by a hash of where a weight stands.

Nothing is drawn and stored: whoever needs a weight's fate computes it again, the backward pass as well, from a seed and the weight's row and column. So every
backend drops the same weights, however it cuts the scores into blocks, and kernels never write a matrix of scores.

B batch, T query length, S key length, K key heads, G query heads per key head.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from unipixel_jax.ops.dropout import mixed


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class WeightDropout:
    """Dropout of softmax's weights, as torch's ``scaled_dot_product_attention`` has it with ``dropout_p``.

    Attributes:
        seeds: [B, K] int32.
        rate: probability with which a weight becomes zero, in [0, 1); what stays is divided by ``1 - rate``.
    """

    seeds: jax.Array
    rate: float = field(metadata={"static": True})

    @staticmethod
    def draw(key: jax.Array, batch: int, key_heads: int, rate: float) -> WeightDropout:
        """Seeds from a scalar key."""
        return WeightDropout(jax.lax.bitcast_convert_type(jax.random.bits(key, (batch, key_heads), jnp.uint32), jnp.int32), rate)

    def thin(self, weights: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
        """Weights [B, K, G, t, s] of rows [G, t] (``g * T + i`` for query i of head g) and columns [s] (keys), some dropped, the others scaled up."""
        return thinned(weights, self.rate, self.seeds[:, :, None, None, None], rows[None, None, :, :, None], columns[None, None, None, None])


def thinned(weights: jax.Array, rate: float, seed: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Weights, some dropped and the others scaled up. ``seed``, ``rows`` and ``columns`` are int32, of the weights' rank, and broadcast to their shape.

    The hash is computed by 32-bit integer operations that TPUs and GPUs have for whole vectors; most of it on single rows and columns.
    """
    drawn = mixed(mixed(rows + seed) + mixed(columns))
    kept = jax.lax.shift_right_logical(drawn, 8) >= round(rate * 2**24)
    return jnp.where(kept, weights * (1 / (1 - rate)), 0.0)
