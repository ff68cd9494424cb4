"""What drawn things look like, in numbers, and the code by which SAM 2 and the language side speak of them.

O things (padded).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from unipixel_jax.data.synthetic.scene import COLOURS, RADII, SHAPES, Scene
from unipixel_jax.models.sam2.position import fourier

LOOKS = (tuple(RADII), tuple(COLOURS), SHAPES)
"""What a name is made of: the sizes, colours and shapes that there are."""
THINGS = 5
"""Of a scene, at most."""
WORD = 0.5
"""Size of the entries of a word's vector."""
_SEED = 11


def looks(scene: Scene) -> NDArray[np.int32]:
    """Numbers of every thing's size, colour and shape [things, 3]."""
    return np.array([[choices.index(word) for choices, word in zip(LOOKS, (t.size, t.colour, t.shape), strict=True)] for t in scene.things], np.int32)


def prompt_code(look: jax.Array, at: jax.Array, pe_matrix: jax.Array) -> jax.Array:
    """What seg_head should say of a thing: a fixed random vector for each of its three words and SAM 2's own code of a position, added up.

    Args:
        look: [..., 3] int32; negative for a word that is not said.
        at: [..., 2] float32, x and y of its centre as shares of the image; negative for a place that is not said.
        pe_matrix: SAM 2's (models/sam2/prompt_encoder.py) [2, d / 2].

    Returns:
        [..., d] float32.
    """
    where = jnp.where(at[..., :1] >= 0, fourier(at, pe_matrix), 0.0)
    keys = jax.random.split(jax.random.key(_SEED), len(LOOKS))
    for i, (key, choices) in enumerate(zip(keys, LOOKS, strict=True)):
        words = WORD * jax.random.normal(key, (len(choices), where.shape[-1]))
        where = where + jnp.where(look[..., i, None] >= 0, words[jnp.maximum(look[..., i], 0)], 0.0)
    return where


def filled(array: NDArray[Any], value: Any, count: int = THINGS) -> NDArray[Any]:
    """With ``count`` rows."""
    return np.concatenate([array, np.full((count - len(array), *array.shape[1:]), value, array.dtype)])
