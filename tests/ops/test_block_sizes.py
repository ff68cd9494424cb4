"""The block sizes of the kernels fit the devices, for inputs of any size."""

import itertools

import jax.numpy as jnp
import pytest

from unipixel_jax.ops.attention import pallas_gpu, pallas_tpu

HEAD_SIZES = (16, 32, 56, 64, 72, 80, 96, 128, 256)
LENGTHS = (1, 9, 64, 196, 2304, 16192, 32768)
DTYPES = (jnp.float32, jnp.bfloat16)


@pytest.mark.parametrize("kind", [*pallas_tpu.LARGEST, "a TPU yet to come"])
def test_tpu_blocks_fit_vmem_and_whole_lanes(kind):
    for size, queries, keys, dtype in itertools.product(HEAD_SIZES, LENGTHS, LENGTHS, DTYPES):
        found = pallas_tpu.block_sizes(kind, size, queries, keys, dtype)
        assert pallas_tpu.vmem(found.q_back, found.kv_back, size, dtype) <= pallas_tpu.VMEM_BUDGET
        for block, length in ((found.q, queries), (found.kv, keys), (found.q_back, queries), (found.kv_back, keys)):
            step = 128 if length > 128 else 16
            assert block % step == 0
            assert -length % block < step * -(-length // block), "the blocks pad more than a step each"


def test_tpu_blocks_are_larger_where_there_is_room():
    large, small = (pallas_tpu.block_sizes(kind, 128, 32768, 32768, jnp.bfloat16).q for kind in ("TPU v5 lite", "a TPU yet to come"))
    assert (large, small) == (1024, 512)
    assert pallas_tpu.block_sizes("TPU v5 lite", 256, 32768, 32768, jnp.float32).q < large


@pytest.mark.parametrize("card", ["NVIDIA A100-SXM4-80GB", "NVIDIA H100 80GB HBM3"])
def test_gpu_blocks_are_powers_of_two_no_longer_than_needed(card):
    for size, queries, keys, dtype in itertools.product(HEAD_SIZES, LENGTHS, LENGTHS, DTYPES):
        for blocks in pallas_gpu.block_sizes(card, size, size, queries, keys, dtype):
            for block, length in ((blocks.queries, queries), (blocks.keys, keys)):
                assert block >= 16 and block & (block - 1) == 0
                assert block == 16 or block < 2 * length


def test_a_hopper_has_room_for_more():
    a100, h100 = (pallas_gpu.block_sizes(card, 128, 128, 8192, 8192, jnp.bfloat16) for card in ("NVIDIA A100-SXM4-80GB", "NVIDIA H100 80GB HBM3"))
    assert h100.dq.queries > a100.dq.queries and h100.dkv == a100.dkv
