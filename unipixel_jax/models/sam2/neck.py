"""The feature pyramid on top of Hiera (reference: sam2/modeling/backbones/image_encoder.py, FpnNeck with scalp 1).

B images, g side of the feature grid (image side / 16), D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
from flax import nnx

from unipixel_jax.config import Sam2Config
from unipixel_jax.core.axes import EMBED
from unipixel_jax.models.layers import Linear
from unipixel_jax.ops.resize import upsample_nearest2


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FrameFeatures:
    """What tracking needs of each frame.

    Attributes:
        high0: [B, 4g, 4g, D/8], high1: [B, 2g, 2g, D/4]: the mask decoder's high-resolution inputs, after its 1x1 convolutions.
        low: [B, g, g, D].
    """

    high0: jax.Array
    high1: jax.Array
    low: jax.Array


class Neck(nnx.Module):
    """Lateral 1x1 convolutions; only the deepest map is added to the one above it, and then dropped."""

    def __init__(self, c: Sam2Config, rngs: nnx.Rngs) -> None:
        self.convs = nnx.List([Linear(dim, c.d_model, (EMBED, EMBED), rngs) for dim in reversed(c.stage_dims)])

    def __call__(self, maps: list[jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Hiera's four maps, largest first, to three maps of width D: [B, 4g, 4g, D], [B, 2g, 2g, D], [B, g, g, D]."""
        deepest, low, middle, high = (conv(x) for conv, x in zip(self.convs, reversed(maps), strict=True))
        return high, middle, low + upsample_nearest2(deepest)
