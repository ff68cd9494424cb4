import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unipixel_jax.ops.take import gather_groups, scatter_groups, take_rows


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


def test_groups_have_the_gradients_of_plain_gathers():
    """Five rows in two groups of three, one row in none: values and gradients as plain indexing gives them, and the way back."""
    table = jnp.asarray([[0, 3, 5], [4, 1, 5]], jnp.int32)  # row 2 is in no group, 5 is an empty place
    inverse = jnp.asarray([0, 4, 0, 1, 3], jnp.int32)
    x = jnp.arange(10.0).reshape(5, 2) + 1
    weight = jnp.arange(12.0).reshape(2, 3, 2)

    def plain(x):
        return jnp.sum(weight * x.at[table].get(mode="fill", fill_value=0) ** 2)

    def ours(x):
        return jnp.sum(weight * gather_groups(x, table, inverse) ** 2)

    np.testing.assert_array_equal(ours(x), plain(x))
    np.testing.assert_array_equal(jax.grad(ours)(x), jax.grad(plain)(x))
    back = scatter_groups(gather_groups(x, table, inverse), table, inverse)
    np.testing.assert_array_equal(back, x.at[2].set(0))
    grouped = jax.grad(lambda g: jnp.sum(scatter_groups(g, table, inverse) ** 2))(gather_groups(x, table, inverse))
    np.testing.assert_array_equal(grouped, 2 * gather_groups(x, table, inverse))
