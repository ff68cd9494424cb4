"""The kernels compile for chips that are not here, forward and backward, at the shapes of the models' work. `make chips`"""

import jax.numpy as jnp
import pytest

from unipixel_jax.bench.attention import WORKS, measure
from unipixel_jax.bench.hiera import MAPS
from unipixel_jax.core.accelerators import CHIPS

KERNELS = {"tpu": "pallas_tpu", "gpu": "pallas_gpu"}


@pytest.mark.chips
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("work", WORKS)
@pytest.mark.parametrize("chip", CHIPS)
def test_the_kernel_compiles(chip, work, dtype):
    (result,) = measure([work], [KERNELS[CHIPS[chip].platform]], chip, jnp.dtype(dtype), backward=True, repeats=1)
    assert result.refused is None and result.temporary is not None


@pytest.mark.chips
@pytest.mark.parametrize("work", ["Hiera 1, windows of 8", "Hiera 3, windows of 14", "Hiera 4, windows of 7"])
@pytest.mark.parametrize("chip", ["v5e", "h100"])
def test_the_kernels_of_maps_move_less_than_half_of_what_xla_moves(chip, work):
    """The attention of a block of SAM's image trunk with its projections, forward and backward; measured on v5e: between an eighth and a quarter."""
    assert work in MAPS
    ours, theirs = measure([work], [KERNELS[CHIPS[chip].platform], "xla"], chip, jnp.dtype(jnp.bfloat16), backward=True, repeats=1, full_effort=False)
    assert 0 < ours.moved < theirs.moved / 2


@pytest.mark.chips
@pytest.mark.parametrize("chip", ["v5e", "h100"])
def test_32768_tokens_need_under_a_gigabyte(chip):
    """16 query and 2 key heads of 128, forward and backward."""
    (result,) = measure(["prefill 32k"], [KERNELS[CHIPS[chip].platform]], chip, jnp.dtype(jnp.bfloat16), backward=True, repeats=1)
    assert result.temporary < 1e9
