"""Who may see whom, kept structured until a backend needs it written out.

B batch, T query length, S key length.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AttnMask:
    """A query sees a key if every given rule allows it.

    Attributes:
        causal: query i sees keys 0..i.
        q_segments: [B, T] int32, with kv_segments: a query sees keys of its own segment; segment 0 is padding, which sees and is seen by none.
        kv_segments: [B, S] int32.
    """

    causal: bool = field(default=False, metadata={"static": True})
    q_segments: jax.Array | None = None
    kv_segments: jax.Array | None = None

    def visible(self, q_index: jax.Array, kv_index: jax.Array) -> jax.Array | None:
        """The mask written out for some queries and keys: [B or 1, 1, 1, t, s] booleans, or None where all see all."""
        rules = []
        if self.causal:
            rules.append((q_index[:, None] >= kv_index[None])[None, None, None])
        if self.q_segments is not None and self.kv_segments is not None:
            q, kv = self.q_segments[:, q_index], self.kv_segments[:, kv_index]
            rules.append(((q[:, :, None] == kv[:, None, :]) & (kv != 0)[:, None, :])[:, None, None])
        if not rules:
            return None
        return rules[0] if len(rules) == 1 else jnp.logical_and(*jnp.broadcast_arrays(*rules))
