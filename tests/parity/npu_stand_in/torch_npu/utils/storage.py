"""Tensors on the device are saved as a call of `_rebuild_npu_tensor` with a copy of their values on the CPU (torch_npu/utils/storage.py)."""

from collections import OrderedDict

import torch

import torch_npu

_plain = torch.Tensor.__reduce_ex__


def _rebuild_npu_tensor(storage, storage_offset, size, stride, requires_grad, backward_hooks, npu_storage_info):
    """Refuse: files are read without it."""
    raise AssertionError("only its name is pickled")


def reduce_ex(self, protocol):
    """Return how pickle makes a tensor anew."""
    if type(self) is not torch.Tensor or self.device.type != "npu":
        return _plain(self, protocol)
    copy = self.cpu()
    place = (copy._typed_storage(), copy.storage_offset(), tuple(copy.size()), copy.stride(), copy.requires_grad)
    return _rebuild_npu_tensor, (*place, OrderedDict(), torch_npu.get_npu_format(self))
