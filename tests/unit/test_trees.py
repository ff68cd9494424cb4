"""Paths of trees: names and back, JAX's own keys, and flat dictionaries."""

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from unipixel_jax.core.trees import flatten, join, key_path, nest, parse


@pytest.mark.parametrize("path", [("text", "blocks", "attn", "q", "weight"), ("sam2", "stages", 2, "w"), (0,), (999_999_999, "a"), ("x1", "1x", "-1", "²")])
@pytest.mark.parametrize("separator", [".", "/"])
def test_a_name_is_read_back(path, separator):
    assert parse(join(path, separator), separator) == path


@pytest.mark.parametrize("name", ["007", "1000000000", "9" * 5000, "", "٣"])
def test_what_join_does_not_write_as_a_number_stays_text(name):
    assert parse(name) == (name,) and join(parse(name)) == name


def test_keys_of_jax_name_the_weights_of_a_model_and_of_an_optimizer():
    class Pair(nnx.Module):
        def __init__(self):
            self.layers = nnx.List([nnx.Param(jnp.zeros(2)), nnx.Param(jnp.zeros(3))])

    state = nnx.state(Pair())
    names = lambda tree: {join(key_path(keys)): leaf.shape for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)}  # noqa: E731
    assert names(state) == {"layers.0": (2,), "layers.1": (3,)}
    assert names(optax.scale_by_adam().init(state)) == {"count": ()} | {f"{m}.layers.{i}": (i + 2,) for m in ("mu", "nu") for i in (0, 1)}
    assert names([{"value": jnp.zeros(1)}]) == {"0.value": (1,)}
    assert key_path(()) == ()


def test_nested_dictionaries_are_flattened_and_nested_again():
    tree = {"a": {0: 1, 1: {"b": 2}}, "c": 3}
    flat = {("a", 0): 1, ("a", 1, "b"): 2, ("c",): 3}
    assert dict(flatten(tree)) == flat
    assert nest(flat) == {"a": {"0": 1, "1": {"b": 2}}, "c": 3}
