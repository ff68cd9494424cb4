"""The kernels compile for chips that are not here, forward and backward, at the shapes of the models' work. `make chips`"""

import jax.numpy as jnp
import pytest

from unipixel_jax.bench.attention import WORKS, measure
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
@pytest.mark.parametrize("chip", ["v5e", "h100"])
def test_32768_tokens_need_under_a_gigabyte(chip):
    """16 query and 2 key heads of 128, forward and backward."""
    (result,) = measure(["prefill 32k"], [KERNELS[CHIPS[chip].platform]], chip, jnp.dtype(jnp.bfloat16), backward=True, repeats=1)
    assert result.temporary < 1e9
