"""Every logical axis name that a weight or an activation may carry. core/sharding.py maps these names to mesh axes; models use nothing else."""

from __future__ import annotations

LAYERS = "layers"
"""The stacked layers of a tower."""
EMBED = "embed"
"""The width of the residual stream of any tower."""
HEADS = "heads"
"""Query heads times head size."""
KV_HEADS = "kv_heads"
"""Key/value heads times head size."""
MLP = "mlp"
"""The inner width of a feed-forward layer."""
VOCAB = "vocab"
"""The rows of the embedding and of the head, one for each token."""
PATCH = "patch"
"""The flattened pixels of one image patch."""
CHANNELS = "channels"
"""The channels of a small convolution or of a table of prompts, which are never worth sharding."""

SEQUENCE = "sequence"
"""The tokens of a conversation."""
IMAGES = "images"
"""Frames of clips, groups of their patches, or objects: entries that are computed independently of each other."""

Axes = tuple[str | None, ...]
"""The logical names of an array's dimensions; None for one that is never sharded."""

ALL = (LAYERS, EMBED, HEADS, KV_HEADS, MLP, VOCAB, PATCH, CHANNELS)
"""The names that weights may carry."""
