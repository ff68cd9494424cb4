"""What drawn things look like, in numbers, and the code by which SAM 2 and the language side speak of them.

O things of a scene (padded).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from unipixel_jax.data.synthetic.scene import COLOURS, RADII, SHAPES, Scene
from unipixel_jax.models.sam2.position import fourier

ATTRIBUTES = (tuple(RADII), tuple(COLOURS), SHAPES)
"""The words of a name: all sizes, all colours and all shapes."""
MAX_THINGS = 5
"""How many things a scene has at most."""
WORD_SCALE = 0.5
"""Standard deviation of the entries of a word's vector."""
_SEED = 11


def appearance(scene: Scene) -> NDArray[np.int32]:
    """The number of every thing's size, colour and shape among all of its kind [O, 3]."""
    return np.array([[choices.index(word) for choices, word in zip(ATTRIBUTES, (t.size, t.colour, t.shape), strict=True)] for t in scene.things], np.int32)


def prompt_code(attributes: jax.Array, positions: jax.Array, pe_matrix: jax.Array) -> jax.Array:
    """Return the code that seg_head should give for a thing: a fixed random vector for each of its three words and SAM 2's own code of a position, added up.

    Args:
        attributes: [..., 3] int32, see ``appearance``; negative for a word that is not said.
        positions: [..., 2] float32, x and y of the thing's centre as shares of the image; negative for a position that is not said.
        pe_matrix: [2, d / 2], that of SAM 2 (models/sam2/prompt_encoder.py).

    Returns:
        [..., d] float32.
    """
    code = jnp.where(positions[..., :1] >= 0, fourier(positions, pe_matrix), 0.0)
    keys = jax.random.split(jax.random.key(_SEED), len(ATTRIBUTES))
    for i, (key, choices) in enumerate(zip(keys, ATTRIBUTES, strict=True)):
        words = WORD_SCALE * jax.random.normal(key, (len(choices), code.shape[-1]))
        code = code + jnp.where(attributes[..., i, None] >= 0, words[jnp.maximum(attributes[..., i], 0)], 0.0)
    return code


def pad_rows(array: NDArray[Any], value: Any, count: int = MAX_THINGS) -> NDArray[Any]:
    """An array [n, ...] with rows of ``value`` added until there are ``count`` rows."""
    return np.concatenate([array, np.full((count - len(array), *array.shape[1:]), value, array.dtype)])
