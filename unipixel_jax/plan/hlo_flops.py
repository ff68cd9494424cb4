"""FLOPs of the matrix units, by instruction: matrix products, convolutions, and kernels whose costs the HLO text states.

A multiplication with its addition is two FLOPs. Elementwise arithmetic is not counted, since it runs beside the matrix units.
"""

from __future__ import annotations

import functools
import math
import re

import numpy as np

from unipixel_jax.plan.hlo_text import Array, Computation, Instruction

NO_KERNELS = frozenset({
    "AllocateBuffer", "AsyncCollectiveStart", "AsyncCollectiveDone", "AssumeGatherIndicesInBound", "ConcatBitcast", "SliceToDynamic", "PadToStatic",
    "Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape", "MoveToHost", "MoveToDevice", "X64Combine", "X64SplitLow", "X64SplitHigh", "TopK", "ApproxTopK",
    "PartialReduce", "annotate_device_placement", "LayoutConstraint", "GatherScatterIndicesBitpacked", "PrepareAsyncCallStart", "PrepareAsyncCallDone",
})  # fmt: skip
"""Custom calls that do not use the matrix units, or hardly do."""


def flops(instruction: Instruction, computation: Computation) -> float | None:
    """Return the FLOPs of one execution of an instruction, without those of computations that it calls; None for a kernel that does not state its FLOPs.

    Sources of the rules: XLA's operation semantics (openxla.org/xla/operation_semantics) for products and convolutions, and the attributes that XLA's GPU
    compiler gives its calls of cuBLAS and cuDNN.
    """
    shapes = computation.shapes(instruction)
    if instruction.opcode == "dot":
        return _product(instruction.arrays[0], shapes[0][0], instruction.numbers("lhs_contracting_dims"))
    if instruction.opcode == "convolution":
        return _convolution(instruction, shapes[0][0], shapes[1][0], instruction.arrays[0])
    if instruction.opcode.removesuffix("-start") == "custom-call":
        return _custom_call(instruction, shapes)
    return 0.0


def _custom_call(instruction: Instruction, shapes: list[tuple[Array, ...]]) -> float | None:
    target = instruction.target
    if target.startswith(("__cublas$gemm", "__cublas$lt$matmul")):
        contracted = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', instruction.attributes)
        dims = tuple(int(n) for n in re.findall(r"\d+", contracted.group(1))) if contracted else ()
        return _product(instruction.arrays[0], shapes[0][0], dims)
    if target.startswith("__cudnn$conv"):
        first, second, result = shapes[0][0], shapes[1][0], instruction.arrays[0]
        # the gradients are the same products as the forward convolution, with the roles exchanged
        if "BackwardInput" in target:
            return _convolution(instruction, result, second, first)
        return _convolution(instruction, first, result, second) if "BackwardFilter" in target else _convolution(instruction, first, second, result)
    if target.startswith("__cudnn$fmha"):
        return _cudnn_attention(instruction, shapes)
    estimate = cost_estimate(instruction, "flops")
    return estimate if estimate is not None else 0.0 if target in NO_KERNELS else None


def cost_estimate(instruction: Instruction, what: str) -> float | None:
    """Return a figure of a Pallas kernel's own estimate (``pl.CostEstimate``; for GPUs, whose text leaves it out, the kernel's metadata); None without one.

    Args:
        instruction: the kernel's custom call. If it works on as many splits of its input as the data say, the figure is that of one (``of_a_split``).
        what: "flops" or "bytes_accessed".
    """
    found = re.search(rf'"cost_estimate":\{{[^{{}}]*"{what}":"?(\d+)', instruction.attributes)
    # there quotation marks are written as the number 22
    found = found or re.search(rf'serialized_metadata = "[^"]*\\22{what}(?: of a split)?\\22: \\22(\d+)', instruction.attributes)
    return float(found.group(1)) if found else None


def of_a_split(instruction: Instruction) -> bool:
    """Return whether a kernel's own estimate is that of one split of its input, of which the data say how many there are (ops/attention/cached_gpu.py)."""
    return bool(re.search(r'serialized_metadata = "[^"]* of a split\\22', instruction.attributes))


def _product(result: Array, left: Array, contracted: tuple[int, ...]) -> float:
    return 2.0 * result.elements * math.prod(left.dims[d] for d in contracted)


def _cudnn_attention(instruction: Instruction, shapes: list[tuple[Array, ...]]) -> float:
    """Return the FLOPs of cuDNN's attention: two products over the scores forward and five backward, halved by a causal mask."""
    scores = re.search(r'"intermediate_tensor_shape":\{[^{}]*"dimensions":\[([^\]]*)\]', instruction.attributes)
    pairs = math.prod(int(n) for n in re.findall(r"\d+", scores.group(1))) if scores else 0
    half = 0.5 if '"mask_type":"CAUSAL"' in instruction.attributes else 1.0
    return half * (5 if "Backward" in instruction.target else 2) * 2.0 * pairs * shapes[0][0].dims[-1]


def _convolution(instruction: Instruction, image: Array, kernel: Array, result: Array) -> float:
    """Return the FLOPs of a convolution. Products with padding or with the holes of a dilation are not counted."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    assert labels is not None, f"{instruction.name} has no dim_labels"
    places = [dict(zip(text, range(len(text)), strict=True)) for text in labels.groups()]
    window = _window(instruction)
    total = 2.0 * result.dims[places[2]["b"]] * result.dims[places[2]["f"]] * kernel.dims[places[1]["i"]]
    for axis, name in enumerate(sorted(letter for letter in places[0] if letter.isdigit())):
        # only the low side of the padding matters for where the window starts
        stride, pad, base, holes = (int(window[key][axis].split("_")[0]) if key in window else default for key, default in _DEFAULTS.items())
        image_size, kernel_size, result_size = (dims[place[name]] for dims, place in zip((image.dims, kernel.dims, result.dims), places, strict=True))
        total *= _valid(image_size, kernel_size, result_size, stride, pad, base, holes)
    return total


_DEFAULTS = {"stride": 1, "pad": 0, "lhs_dilate": 1, "rhs_dilate": 1}


def _window(instruction: Instruction) -> dict[str, list[str]]:
    text = instruction.attribute("window")
    return {key: value.split("x") for key, value in (part.split("=") for part in text.split())} if text else {}


@functools.lru_cache(maxsize=4096)
def _valid(image: int, kernel: int, result: int, stride: int, pad: int, base: int, holes: int) -> int:
    """Return how many pairs of a position in the result and one in the kernel meet an element of the image, along one dimension."""
    starts = np.arange(result, dtype=np.int64) * stride - pad
    count = 0
    for offset in range(0, kernel * holes, holes):
        at = starts + offset
        inside = (at >= 0) & (at <= (image - 1) * base)
        count += int(np.count_nonzero(inside & (at % base == 0) if base > 1 else inside))
    return count
