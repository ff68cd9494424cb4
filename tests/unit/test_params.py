"""Initial weights: which distribution they have, and that shapes share the programs that draw them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unipixel_jax.core.params import lecun, normal, unit_normal, xavier

FLOAT = jnp.dtype("float32")
SHAPES = [(3, 5), (7, 33, 5), (64, 64), (70, 60), (3, 4, 2, 2)]
"""The third needs as many numbers as are drawn at least, the fourth more."""


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("initializer", "reference"),
    [
        (unit_normal, jax.nn.initializers.normal(1.0)),
        (normal(0.25), jax.nn.initializers.normal(0.25)),
        (xavier, jax.nn.initializers.glorot_uniform(in_axis=-1, out_axis=-2)),
        (lecun, lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -((3 / np.prod(shape[1:])) ** 0.5), (3 / np.prod(shape[1:])) ** 0.5)),
    ],
    ids=["unit normal", "normal", "xavier", "lecun"],
)
def test_weights_are_those_that_jax_draws_in_their_shape(initializer, reference, shape):
    key = jax.random.key(5)
    np.testing.assert_array_equal(initializer(key, shape, FLOAT), reference(key, shape, FLOAT))


def test_layers_drawn_together_are_those_drawn_alone():
    keys = jax.random.split(jax.random.key(1), 3)
    together = jax.vmap(lambda key: lecun(key, (9, 7), FLOAT))(keys)
    np.testing.assert_array_equal(together, np.stack([lecun(key, (9, 7), FLOAT) for key in keys]))


def test_shapes_share_the_program_that_draws(compiled):
    lecun(jax.random.key(0), (11, 13), FLOAT)
    compiled.clear()
    lecun(jax.random.key(0), (5, 9), FLOAT)
    assert len(compiled) == 1, "only the program that gives the numbers their shape"
