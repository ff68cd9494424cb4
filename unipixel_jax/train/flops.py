"""FLOPs that the model needs, for the model FLOPs utilisation (MFU; PaLM, arXiv 2204.02311, appendix B).

The counts are those of matrix products with weights and of attention, two for a multiply-add, that the samples need; padding and recomputation do not count.
The backward pass to the activations counts as much as the forward pass, and the gradients of trained weights as much again. SAM's memory attention, through
whose scores no gradient passes (docs/architecture.md), has a backward pass of the values alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np

from unipixel_jax.batch import TrainBatch
from unipixel_jax.config import Sam2Config, UniPixelConfig
from unipixel_jax.core.accelerators import CHIPS


@dataclass(frozen=True)
class Flops:
    """The FLOPs of some samples, for a forward pass or for a step with gradients.

    Attributes:
        language: FLOPs of the language model and the vision tower.
        sam: FLOPs of SAM 2 on all frames and objects.
        token: FLOPs of one more token of an answer; 0 for a step with gradients.
        frame: FLOPs of tracking one frame; 0 for a step with gradients.
        constant: those FLOPs in ``sam`` that have no backward pass; 0 for a step with gradients.
    """

    language: float
    sam: float
    token: float = 0.0
    frame: float = 0.0
    constant: float = 0.0

    @property
    def total(self) -> float:
        """The sum of ``language`` and ``sam``."""
        return self.language + self.sam

    def training(self, trained: Sequence[str]) -> Flops:
        """Return the FLOPs of forward and backward pass where the parts named ``trained`` are trained (train/trainable.py), without those of adapters."""
        everything = "all" in trained
        sam = 3 if everything or "sam2" in trained else 2
        return Flops((3 if everything else 2) * self.language, sam * self.sam - (sam - 1) * self.constant)


def row_flops(config: UniPixelConfig, arrays: TrainBatch) -> Flops:
    """Return the forward FLOPs of the samples of some rows, whose index tables may be split into parts that devices share."""
    text, vision = config.text, config.vision
    lengths = (arrays.inputs.segments > 0).sum(axis=-1).astype(np.float64)
    layer = text.hidden_size * (2 * text.hidden_size + 2 * text.num_key_value_heads * text.head_dim + 3 * text.intermediate_size)
    weights = text.num_hidden_layers * layer + text.hidden_size * text.vocab_size
    causal = text.num_hidden_layers * text.hidden_size * float(np.sum(lengths**2))  # two products (scores and values), of which the causal mask leaves half
    tokens = float(lengths.sum())

    windows, frames = arrays.inputs.vision.windows, arrays.inputs.vision.frame_table
    bins = windows.reshape(-1, windows.shape[-1])
    in_windows = np.sum(bins[:, :, None] == bins[:, None], axis=-1)[bins > 0]  # the number of patches that each patch attends to
    in_frames = np.sum(frames < arrays.inputs.vision.rope.shape[-2], axis=-1, dtype=np.float64)
    patches = float(len(in_windows))
    block = vision.hidden_size * (4 * vision.hidden_size + 3 * vision.intermediate_size)
    merger = vision.merge_dim * (vision.merge_dim + vision.out_hidden_size) / vision.merge_unit
    seen = 2 * patches * (vision.depth * block + merger + vision.patch_dim * vision.hidden_size)
    whole = len(vision.fullatt_block_indexes)
    seen += 4 * vision.hidden_size * ((vision.depth - whole) * float(np.sum(in_windows)) + whole * float(np.sum(in_frames**2)))

    sam, frame, constant = 0.0, 0.0, 0.0
    if arrays.clips is not None:
        counts = np.asarray(arrays.clips.counts, np.float64).reshape(-1)
        objects = arrays.clips.valid.reshape(len(counts), -1).sum(axis=-1)
        remembering = 0 if config.sam2_batch_mode else 1
        frame = encode_flops(config.sam2) + float(np.mean(objects)) * object_flops(config.sam2, remembering)
        first = encode_flops(config.sam2) + objects * object_flops(config.sam2, 0)
        later = encode_flops(config.sam2) + objects * object_flops(config.sam2, remembering)
        sam = float(np.sum(first + later * (counts - 1)))
        constant = remembering * float(np.sum(objects * (counts - 1))) * constant_flops(config.sam2)
    token = 2 * weights + 4 * text.num_hidden_layers * text.hidden_size * float(np.mean(lengths))
    return Flops(2 * weights * tokens + 2 * causal + seen, sam, token, frame, constant)


def encode_flops(sam: Sam2Config) -> float:
    """Return the forward FLOPs of SAM's image encoder for one frame, without its attention within windows."""
    blocks = sum(depth * 12 * dim**2 / 4**stage for stage, (depth, dim) in enumerate(zip(sam.stages, sam.stage_dims, strict=True)))
    return 2 * (sam.image_size / 4) ** 2 * blocks


def object_flops(sam: Sam2Config, remembering: int) -> float:
    """Return the forward FLOPs of one object on one frame: reading a full memory (if ``remembering`` is 1, not 0), decoding the masks, and making a memory.

    The FLOPs are counted per cell of the feature grid; the products of the few tokens of a prompt are left out.
    """
    cells, d, m = sam.grid**2, sam.d_model, sam.mem_dim
    memories = sam.num_maskmem * cells
    own = 4 * d * d + 2 * cells * d
    cross = 2 * d * d + sam.num_maskmem * m * d + memories * (d + m) + m * d  # values are weighted before they are projected
    read = sam.memory_attention_layers * (own + cross + 2 * d * sam.memory_attention_ffn_dim)
    decode = 5 * d * d + 1.5 * d * d  # keys, values and queries of five attentions between image and tokens; two transposed convolutions
    masks = sum(9 * (wide // 4) * wide * 4**level for level, wide in ((3, 4), (2, 16), (1, 64), (0, 256)))
    write = masks + 256 * d + d * d + sam.fuser_layers * (8 * d * d + 49 * d) + d * m
    return 2.0 * cells * (remembering * read + decode + write)


def constant_flops(sam: Sam2Config) -> float:
    """Return those FLOPs of reading the memory, for one object on one frame, that have no backward pass.

    They are the projections of queries and keys, the scores, and half of the products of weights and values: of these, as of scores elsewhere, the gradients of
    both factors would be counted, and only that of the values is needed.
    """
    cells, d, m = sam.grid**2, sam.d_model, sam.mem_dim
    memories = sam.num_maskmem * cells
    own = 2 * d * d + cells * d + cells * d / 2
    cross = d * d + sam.num_maskmem * m * d + memories * d + memories * m / 2
    return 2.0 * cells * sam.memory_attention_layers * (own + cross)


def peak_flops() -> float | None:
    """Return the peak bfloat16 FLOP/s of all local devices together; None for devices that core/accelerators.py does not list (a CPU)."""
    devices = jax.local_devices()
    for chip in CHIPS.values():
        if chip.kind in devices[0].device_kind and devices[0].platform == chip.platform:
            return chip.flops * len(devices)
    return None
