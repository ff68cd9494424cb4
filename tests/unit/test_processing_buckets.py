"""Ladders of padded sizes."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unipixel_jax.core.buckets import LADDERS, Ladder
from unipixel_jax.errors import UserError

ALL = [getattr(LADDERS, f.name) for f in dataclasses.fields(LADDERS)]


@pytest.mark.parametrize("ladder", ALL, ids=lambda ladder: ladder.what)
def test_rungs_increase_in_whole_steps_up_to_the_limit(ladder):
    assert list(ladder.sizes) == sorted(set(ladder.sizes))
    assert all(size % ladder.step == 0 for size in ladder.sizes)
    assert ladder.sizes[0] == ladder.step and ladder.sizes[-1] == ladder.limit
    assert len(ladder.sizes) < 64


@given(st.sampled_from(ALL), st.data())
def test_a_size_fits_and_wastes_little(ladder, data):
    n = data.draw(st.integers(0, ladder.limit))
    size = ladder.size(n)
    assert size >= n and size in ladder.sizes
    assert size < max(n, ladder.step) * ladder.growth + ladder.step
    assert ladder.size(size) == size


@pytest.mark.parametrize("n", [-1, 101])
def test_a_size_beyond_the_limit_is_named(n):
    with pytest.raises(UserError, match=f"{n} apples, expected 0 to 100"):
        Ladder("apples", 4, 1.5, 100).size(n)
