"""The module `torch.npu` of the stand-in."""

import os

import torch

ABSENT = "NPU_STAND_IN_ABSENT"
"""The environment variable that takes the device away, as on a machine with torch_npu and without an NPU."""
LOG = "NPU_STAND_IN_LOG"
"""The environment variable that names a file. A line is added for each setting, and at the end one with the number of operations that the device computed."""


def log(line):
    """Add a line to the file that the environment names."""
    if path := os.environ.get(LOG):
        with open(path, "a") as file:
            file.write(line + "\n")


class _Settings:
    """A group of settings (torch_npu/npu/npu_config.py). They begin to use the device, so that they fail without one; unknown ones are refused."""

    def __init__(self, name, *known):
        vars(self).update(_name=name, _known=known)

    def __setattr__(self, name, value):
        if name not in self._known:
            raise AttributeError(f"torch.npu.{self._name} has no setting {name}")
        if not is_available():
            raise RuntimeError("Initialize: aclrtSetDevice failed, error code is 507033")
        log(f"{self._name}.{name} = {value}")


matmul, conv = _Settings("matmul", "allow_hf32"), _Settings("conv", "allow_hf32")


def is_available():
    return ABSENT not in os.environ


def device_count():
    return int(is_available())


def current_device():
    return 0


def set_device(device):
    pass


def synchronize(device=None):
    pass


def empty_cache():
    pass


def manual_seed_all(seed):
    pass


def get_amp_supported_dtype():
    return [torch.float16, torch.bfloat16]


def _is_in_bad_fork():
    return False
