import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unipixel_jax.ops.take import take_rows


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_and_gradient_are_those_of_indexing(dtype, rng):
    table, ids = jnp.asarray(rng.normal(size=(7, 4)), dtype), jnp.asarray([[3, 3, 0], [6, 1, 3]])
    weight = jnp.asarray(rng.normal(size=(2, 3, 4)), dtype)
    ours, pull = jax.vjp(lambda t: take_rows(t, ids), table)
    theirs, their_pull = jax.vjp(lambda t: t[ids], table)
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(pull(weight)[0], their_pull(weight)[0])


def test_a_bfloat16_table_is_never_converted():
    """In a loop too, where XLA would keep a float32 copy of it."""

    def loop(table, ids):
        return jax.lax.fori_loop(0, 3, lambda i, ids: jnp.argmax(take_rows(table, ids), axis=-1), ids)

    program = jax.jit(loop).lower(jax.ShapeDtypeStruct((5000, 64), jnp.bfloat16), jax.ShapeDtypeStruct((2,), jnp.int32)).compile()
    assert "f32[5000,64]" not in program.as_text()
