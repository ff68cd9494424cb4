"""Every logical axis name that a weight may carry. A mesh preset maps these names to mesh axes; models use nothing else."""

from __future__ import annotations

LAYERS = "layers"
"""Blocks of a tower, stacked."""
EMBED = "embed"
"""Width of the residual stream of any tower."""
HEADS = "heads"
"""Query heads times head size."""
KV_HEADS = "kv_heads"
"""Key/value heads times head size."""
MLP = "mlp"
"""Inner width of a feed-forward layer."""
VOCAB = "vocab"
"""Rows of the embedding and of the head."""
PATCH = "patch"
"""Flattened numbers of one image patch."""
CHANNELS = "channels"
"""Channels of a small convolution or of a prompt table; never worth sharding."""

Axes = tuple[str | None, ...]

ALL = (LAYERS, EMBED, HEADS, KV_HEADS, MLP, VOCAB, PATCH, CHANNELS)
