"""Every logical axis name that a weight or an activation may carry. core/sharding.py maps these names to mesh axes; models use nothing else."""

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

SEQUENCE = "sequence"
"""Tokens of a conversation."""
IMAGES = "images"
"""Frames of clips, groups of their patches, or objects: what is computed one by one."""

Axes = tuple[str | None, ...]

ALL = (LAYERS, EMBED, HEADS, KV_HEADS, MLP, VOCAB, PATCH, CHANNELS)
"""Those of weights."""
