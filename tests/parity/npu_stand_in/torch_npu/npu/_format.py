"""The layouts of tensors on the device (torch_npu/npu/_format.py)."""

from enum import IntEnum


class Format(IntEnum):
    """The plain layout, and one that matrices have in the NPU's own order."""

    ND = 2
    FRACTAL_NZ = 29
