"""Model FLOPs of a training step, for the share of the hardware's peak that is used (MFU; PaLM, arXiv 2204.02311, appendix B).

Counted are the matrix products of weights and of attention, twice for a multiply-add, of what the samples need and not of padding or recomputation. A pass
forward is one share; back through the activations another; and to the weights a third where they are trained.
"""

from __future__ import annotations

import jax
import numpy as np

from unipixel_jax.config import UniPixelConfig
from unipixel_jax.core.chips import CHIPS
from unipixel_jax.data.batch import BatchArrays

BACKWARD = 2.0
"""FLOPs of the backward pass in units of the forward pass, taking weights as trained; frozen ones under adapters cost half of that."""


def step_flops(config: UniPixelConfig, arrays: BatchArrays) -> float:
    """FLOPs of one batch of language side and vision tower, forward and backward; SAM's are counted for its image encoder alone, where most of them are."""
    tokens = arrays.inputs.segments > 0
    lengths = tokens.sum(axis=-1).astype(np.float64)
    text, vision, sam = config.text, config.vision, config.sam2
    layer = text.hidden_size * (2 * text.hidden_size + 2 * text.num_key_value_heads * text.head_dim + 3 * text.intermediate_size)
    weights = text.num_hidden_layers * layer + text.hidden_size * text.vocab_size
    causal = text.num_hidden_layers * text.hidden_size * float(np.sum(lengths**2))  # two products, of which the mask leaves half
    total = 2 * weights * float(lengths.sum()) + 2 * causal

    patches = float(np.sum(arrays.inputs.vision.window_table < arrays.inputs.vision.rope.shape[-2]))
    block = vision.hidden_size * (4 * vision.hidden_size + 3 * vision.intermediate_size)
    merger = vision.merge_dim * (vision.merge_dim + vision.out_hidden_size) / vision.merge_unit
    total += 2 * patches * (vision.depth * block + merger + vision.patch_dim * vision.hidden_size)

    if arrays.clips is not None:
        blocks = sum(depth * 12 * dim**2 / 4**stage for stage, (depth, dim) in enumerate(zip(sam.stages, sam.stage_dims, strict=True)))
        total += 2 * float(arrays.clips.counts.sum()) * (sam.image_size / 4) ** 2 * blocks
    return total * (1 + BACKWARD)


def peak_flops() -> float | None:
    """bfloat16 FLOP/s of all local devices together; None where the chip is not one of core/chips.py (a CPU)."""
    devices = jax.local_devices()
    for chip in CHIPS.values():
        if chip.kind in devices[0].device_kind and devices[0].platform == chip.platform:
            return chip.flops * len(devices)
    return None
