"""The contract between host and device: the arrays of a batch, each declared once. They are numpy's on the host and JAX's on a device.

Nothing here knows JAX. The model's side registers these classes as pytrees (``models/__init__.py``), so that ``jax.device_put`` and ``jax.jit`` take what
the host made as it is. A new input is a new field here, filled in ``processing/batch.py`` and read in the model.

B prompts, L tokens, N = W C patches in W bins of C (those of a full window), M merged vision tokens, G grid frames (pairs of frames), R references, K memories,
O objects, F frames, S side of SAM's square image: all but C and S are padded sizes from ``core/buckets.py``. A padded index is one past the last row of what it
points into, never -1, which would wrap around. A batch for training has one more dimension of rows in front of every array, each row with tables of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, TypeVar

import numpy as np

Int32 = Annotated[Any, np.int32]
Float32 = Annotated[Any, np.float32]
Floating = Annotated[Any, np.floating]
Bool = Annotated[Any, np.bool_]
"""Arrays of these dtypes: numpy's on the host, JAX's on a device."""

HOST_ONLY = "host only"
"""The metadata of a field that does not go to the device."""

T = TypeVar("T")


@dataclass(frozen=True)
class VisionTables:
    """Where each patch lies and whom it attends to in the vision tower, which holds patches window by window (processing/vision_index.py).

    Attributes:
        rope: row and column of each patch in its frame [N, 2], int32; 0 at padding.
        windows: the window that each patch lies in [W, C], int32, counted from 1; 0 at padding. A bin may hold several windows, but no window lies in two.
        frame_table: the patches of each grid frame [G, patches of the largest frame, padded], int32; N in empty places.
        frame_inverse: where each patch lies in the flattened ``frame_table`` [N], int32; 0 at padding.
    """

    rope: Int32
    windows: Int32
    frame_table: Int32
    frame_inverse: Int32


@dataclass(frozen=True)
class References:
    """Points and boxes, in the order of their ``<|ref|>`` tokens.

    Attributes:
        coords: x and y in pixels of SAM's square [R, 3, 2], float32: a point and two fillers, or a box's two corners and a filler.
        labels: the kind of each coordinate pair [R, 3], int32: 1 for a point, 2 and 3 for corners, -1 for a filler. The encoder adds no further filler.
        is_box: True where three embeddings count instead of the first two [R], bool.
        frames: the frame of the clip that each lies on [R], float32.
        spans: the last frame that the clip's grid has room for, by which ``frames`` is divided [R], float32; 1 at padding.
    """

    coords: Float32
    labels: Int32
    is_box: Bool
    frames: Float32
    spans: Float32


@dataclass(frozen=True)
class ModelInputs:
    """A batch of conversations about images and clips.

    Attributes:
        input_ids: token ids [B, L], int32, padded on the left; a padded row holds one token.
        lengths: tokens that count, at the end of each row [B], int32.
        segments: the conversation that a token belongs to, counted from 1 in each row [B, L], int32; 0 at padding.
        position_ids: rotary positions in time, height and width [3, B, L], int32.
        rope_deltas: what to add to an index >= L to get the position of a generated token, which goes on with the last conversation of its row [B], int32.
        patches: in the order of ``vision`` [N, patch_dim], float32 or bfloat16, 0 at padding. Where devices share a row's frames, they are
            [parts, N, patch_dim], every array of ``vision`` has the parts in front too, and M counts the merged tokens of all parts.
        vision: index tables of the vision tower.
        vision_slots: for each token the merged vision token that replaces it [B, L], int32; M for none.
        references: points and boxes.
        reference_slots: for each token the reference that replaces it [B, L], int32; R for none.
        memory_rows: the merged vision tokens that each memory averages [K, tokens], int32, padded with M.
        memory_slots: for each token the memory that replaces it [B, L], int32; K for none.
        seg_positions: the positions just before the ``<|seg|>`` tokens, whose hidden states are to be segmented [B, O], int32; L for none.
    """

    input_ids: Int32
    lengths: Int32
    segments: Int32
    position_ids: Int32
    rope_deltas: Int32
    patches: Floating
    vision: VisionTables
    vision_slots: Int32
    references: References
    reference_slots: Int32
    memory_rows: Int32
    memory_slots: Int32
    seg_positions: Int32


@dataclass(frozen=True)
class TrainClips:
    """What SAM is to find in the clips of a batch; the objects are those of ``ModelInputs.seg_positions``.

    Attributes:
        frames: normalised [B, F, S, S, 3], float32 or bfloat16.
        counts: true frames of each clip [B], int32; later frames are padding and count nothing.
        masks: the truth [B, F, O, S, S], bool.
        valid: False for padding objects [B, O], bool.
    """

    frames: Floating
    counts: Int32
    masks: Bool
    valid: Bool


@dataclass(frozen=True)
class TrainBatch:
    """Rows to train on; every array has one more dimension of rows in front.

    Attributes:
        inputs: the conversations, answers included.
        labels: the next token to predict [B, L], int32; -100 where nothing is trained.
        label_weights: how much each label counts [B, L], float32. They sum to 1 over a batch: every sample counts the same, and every label of a sample, as
            with the reference's micro-batches of one sample.
        clips: what is to be segmented; None where nothing is.
        samples: source and name of every sample, for reports; on the host only.
    """

    inputs: ModelInputs
    labels: Int32
    label_weights: Float32
    clips: TrainClips | None
    samples: tuple[tuple[str, str], ...] = field(default=(), metadata={HOST_ONLY: True})


def row(tree: T, index: int) -> T:
    """One row of a batch as views: every array without its first dimension, so that writing into them writes into the batch."""
    return replace(tree, **{own.name: _at(getattr(tree, own.name), index) for own in fields(tree)})  # type: ignore[arg-type, type-var]


def _at(value: Any, index: int) -> Any:
    if isinstance(value, np.ndarray):
        return value[index]
    return row(value, index) if hasattr(value, "__dataclass_fields__") else value
