"""Functions of which only the programs used last are kept."""

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from unipixel_jax.core.mesh import MeshConfig, make_mesh
from unipixel_jax.core.programs import Programs, packed


@dataclasses.dataclass(frozen=True)
class Config:
    factor: float


class Scale(nnx.Module):
    def __init__(self, factor, width=3):
        self.config = Config(factor)
        self.weight = nnx.Param(jnp.arange(width, dtype=jnp.float32))


@pytest.fixture
def traced():
    """A function with room for two programs, and the shapes for which it was traced."""
    shapes = []

    def scale(module, x, *, plus=0):
        """Multiply."""
        shapes.append((x.shape, plus))
        return module.config.factor * jnp.sum(module.weight[...]) * x.astype(jnp.float32) + plus

    return Programs(scale, limit=2), shapes


def live():
    return len(jax.devices()[0].client.live_executables())


def ones(count):
    return np.ones(count, np.float32)


def test_the_least_recently_used_program_is_dropped_and_made_again(traced):
    scale, shapes = traced
    module = Scale(2.0)
    for count in (1, 2, 1, 3, 1, 2):  # 3 takes the place of 2, not of 1, and 2 then that of 3
        np.testing.assert_array_equal(scale(module, ones(count)), np.full(count, 6.0))
        assert len(scale) <= 2
    assert [shape for (shape,), _ in shapes] == [1, 2, 3, 2]


def test_dropped_programs_are_freed(traced):
    scale, _ = traced
    module = Scale(2.0)
    for count in (1, 2):
        scale(module, ones(count))
    full = live()
    for count in range(3, 9):
        scale(module, ones(count))
    assert live() == full


def test_static_arguments_dtypes_configurations_and_meshes_make_programs_of_their_own(traced):
    scale, shapes = traced
    scale.limit = 10
    module = Scale(2.0)
    for _ in range(2):
        assert scale(module, ones(1))[0] == 6
        assert scale(module, ones(1), plus=1)[0] == 7
        assert scale(Scale(3.0), ones(1))[0] == 9
        assert scale(module, np.ones(1, np.float16))[0] == 6
        with jax.set_mesh(make_mesh(MeshConfig("dp"), jax.devices())):
            assert scale(module, ones(1))[0] == 6
    assert len(scale) == len(shapes) == 5


def test_other_weights_of_a_configuration_use_the_same_program(traced):
    scale, shapes = traced
    first, second = Scale(2.0), Scale(2.0)
    second.weight[...] = second.weight[...] + 1
    assert (scale(first, ones(1))[0], scale(second, ones(1))[0]) == (6, 12)
    assert len(shapes) == 1


def test_weights_of_other_shapes_are_told_apart_within_an_entry(traced):
    scale, _ = traced
    assert (scale(Scale(2.0), ones(1))[0], scale(Scale(2.0, width=4), ones(1))[0]) == (6, 12)


def test_what_is_packed_stands_for_its_module_as_it_was(traced):
    scale, shapes = traced
    module = Scale(2.0)
    before = packed(module)
    module.weight[...] = module.weight[...] + 1
    assert [float(scale(one, ones(1))[0]) for one in (before, packed(module), module, packed(Scale(3.0)))] == [6, 12, 12, 9]
    assert len(shapes) == len(scale) == 2


def test_programs_keep_the_name_of_their_function(traced):
    scale, _ = traced
    assert "name=scale" in str(jax.make_jaxpr(scale)(packed(Scale(2.0)), ones(1)))


def test_threads_share_it(traced):
    scale, _ = traced
    module, start = Scale(2.0), threading.Barrier(4)

    def work(seed):
        start.wait(60)
        counts = np.random.default_rng(seed).integers(1, 6, 40)
        return all(np.array_equal(scale(module, ones(count)), np.full(count, 6.0)) for count in counts)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))
    assert len(scale) <= 2


def test_it_looks_like_the_function(traced):
    scale, _ = traced
    assert (scale.__name__, scale.__doc__) == ("scale", "Multiply.")
