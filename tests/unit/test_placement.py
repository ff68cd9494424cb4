"""Where weights lie for inference, decided by their bytes and the devices' memory."""

import logging
from types import SimpleNamespace

import pytest

from unipixel_jax.config import preset
from unipixel_jax.core.accelerators import CHIPS, usable, usable_memory
from unipixel_jax.core.mesh import MeshConfig
from unipixel_jax.errors import UserError
from unipixel_jax.infer.placement import choose_placement, inference_mesh, shared_by
from unipixel_jax.models.partition import tensor_sizes

GB = 1e9


@pytest.mark.parametrize(
    ("size", "dtype", "chip", "devices", "tensor", "copies"),
    [
        ("3b", None, "v5e", 1, 1, 1),
        ("3b", None, "v5e", 8, 1, 8),
        ("3b", "float32", "v5e", 8, 2, 4),  # 15.5 of 16.9 GB would leave nothing beside them
        ("7b", None, "v5e", 4, 2, 2),
        ("7b", None, "v5e", 8, 2, 4),
        ("7b", "float32", "v5e", 8, 4, 2),
        ("7b", None, "v6e", 8, 1, 8),
        ("7b", None, "h100", 1, 1, 1),
    ],
)
def test_the_fewest_devices_that_hold_a_copy(size, dtype, chip, devices, tensor, copies):
    found = choose_placement(preset(size), dtype, devices, usable(CHIPS[chip]))
    assert (found.tensor, found.copies, found.roomy) == (tensor, copies, True)
    assert found.mesh == (None if tensor == 1 else MeshConfig("fsdp_tp", tensor=tensor))


def test_weights_that_fit_nowhere_are_divided_as_far_as_heads_go():
    found = choose_placement(preset("7b"), None, 1, usable(CHIPS["v5e"]))
    assert (found.tensor, found.roomy) == (1, False) and 16.8 * GB < found.weights < 16.9 * GB
    found = choose_placement(preset("7b"), "float32", 2, 8 * GB)
    assert (found.tensor, found.roomy) == (2, False)


def test_cpus_share_the_memory_of_the_host():
    cpu = SimpleNamespace(platform="cpu", device_kind="cpu")
    assert usable_memory(cpu) is None
    found = choose_placement(preset("7b"), "float32", 8, None)
    assert found.tensor == 1 and str(found).startswith("whole weights on a device (33") and "in the memory of the host), 8 copies" in str(found)


def test_heads_say_which_numbers_of_devices_can_share_a_copy():
    assert tensor_sizes(preset("3b"), 64) == [2, 4, 8, 16] and tensor_sizes(preset("7b"), 8) == [2, 4]


def device(chip, bytes_limit=None):
    stats = None if bytes_limit is None else {"bytes_limit": bytes_limit}
    return SimpleNamespace(platform=CHIPS[chip].platform, device_kind=CHIPS[chip].kind, memory_stats=lambda: stats)


def test_a_device_is_believed_and_else_its_data_sheet():
    assert usable_memory(device("v5e")) == 15.75 * 2**30 and usable_memory(device("h100")) == 0.95 * 80e9
    assert usable_memory(device("h100", 60 * 10**9)) == 60e9
    assert usable_memory(SimpleNamespace(platform="gpu", device_kind="new", memory_stats=lambda: None)) is None


def test_the_choice_is_told_with_its_reason(caplog):
    with caplog.at_level(logging.INFO, logger="unipixel_jax"):
        assert inference_mesh(preset("3b"), None, [device("v5e")] * 8) is None
    assert caplog.messages == ["whole weights on a device (7.76 GB of a device's 16.9 GB), 8 copies: they fit"]
    with pytest.raises(UserError, match=r"would take 16.9 GB on each device, divided among 1, and a device has 16.9 GB: use more devices"):
        inference_mesh(preset("7b"), None, [device("v5e")])


def test_the_option_of_the_commands():
    assert shared_by(None) == {}
    assert shared_by(1) == {"mesh": MeshConfig("single"), "devices": 1}
    assert shared_by(4) == {"mesh": MeshConfig("fsdp_tp", tensor=4), "devices": 4}
