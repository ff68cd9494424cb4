"""A stand-in for torch_npu: torch gets a device "npu" that the CPU computes (../device.cpp).

It has what the recorder, the reference, transformers and accelerate ask of torch_npu, and no more, so that a call of anything else is an AttributeError.
"""

import atexit
from pathlib import Path

import torch
from torch.utils import cpp_extension

from . import npu
from .npu._format import Format
from .utils import storage

SOURCE = Path(__file__).parents[1] / "device.cpp"


def get_npu_format(tensor):
    """Return the layout of a tensor on the device, which is always the plain one here."""
    return Format.ND


def npu_rotary_mul(*args):
    """Refuse: transformers imports it for its flash attention, which the recorder does not choose."""
    raise NotImplementedError("the stand-in has no npu_rotary_mul")


torch.utils.rename_privateuse1_backend("npu")
torch._register_device_module("npu", npu)
device = cpp_extension.load("npu_stand_in", [str(SOURCE)], extra_cflags=["-O0"])
atexit.register(lambda: npu.log(f"computed {device.computed()}"))
torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)
torch.Tensor.__reduce_ex__ = storage.reduce_ex
