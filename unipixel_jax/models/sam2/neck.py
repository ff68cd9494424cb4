"""The feature pyramid on top of Hiera (reference: sam2/modeling/backbones/image_encoder.py, FpnNeck with scalp 1).

B images, g side of the feature grid (image side / 16), D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from unipixel_jax.config import Sam2Config
from unipixel_jax.core.axes import EMBED
from unipixel_jax.models.layers import Linear
from unipixel_jax.ops.dense import dense
from unipixel_jax.ops.resize import upsample_nearest2


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FrameFeatures:
    """The features of frames that tracking needs, in the compute dtype.

    Attributes:
        high0: [B, 4g, 4g, D/8] features for the mask decoder, after its 1x1 convolution.
        high1: [B, 2g, 2g, D/4] features for the mask decoder, after its 1x1 convolution.
        low: [B, g, g, D] features that are conditioned on the memory.
    """

    high0: jax.Array
    high1: jax.Array
    low: jax.Array


class Neck(nnx.Module):
    """The lateral 1x1 convolutions of the pyramid. Only the deepest map is added to the next larger one, and then dropped.

    The reference applies the mask decoder's 1x1 convolutions to the two largest maps when it decodes. Nothing lies between the two convolutions of a map, so
    here they are one: at 768 pixels that saves 1.8 G of the encoder's 173 G multiplications, and the [36864, 256] intermediate.
    """

    def __init__(self, c: Sam2Config, rngs: nnx.Rngs) -> None:
        self.convs = nnx.List([Linear(dim, c.d_model, (EMBED, EMBED), rngs) for dim in reversed(c.stage_dims)])

    def __call__(self, maps: list[jax.Array], conv_s0: Linear, conv_s1: Linear) -> FrameFeatures:
        """Map Hiera's four maps, [B, 4g, 4g, C] first and [B, g/2, g/2, 8C] last, to features; ``conv_s0`` and ``conv_s1`` are the mask decoder's."""
        high, middle, low, deepest = maps
        return FrameFeatures(
            high0=_compose(self.convs[3], conv_s0, high),
            high1=_compose(self.convs[2], conv_s1, middle),
            low=self.convs[1](low) + upsample_nearest2(self.convs[0](deepest)),
        )


def _compose(first: Linear, second: Linear, x: jax.Array) -> jax.Array:
    """Return ``second(first(x))``. The weights are multiplied with each other first, which saves products where x has many rows and ``first`` widens it."""
    w1, w2 = first.weight[...].astype(jnp.float32), second.weight[...].astype(jnp.float32)
    weight = jnp.matmul(w2, w1, precision="highest")
    b1, b2 = (a.bias[...].astype(jnp.float32) for a in (first, second))  # type: ignore[index]
    bias = jnp.matmul(w2, b1, precision="highest") + b2
    return dense(x, weight, bias)
