"""The padded sizes of a batch, on which hosts have to agree before their parts can form one global array."""

from __future__ import annotations

from unipixel_jax.data.batch import BatchArrays


def sizes_of(arrays: BatchArrays) -> dict[str, int]:
    """The size of every dimension that depends on the samples, named after the ladders. Collating with ``ladders.fixed(sizes)`` gives just these,
    or larger ones, so that the elementwise maximum over hosts fits them all.
    """
    inputs, clips = arrays.inputs, arrays.clips
    rows, tokens = inputs.input_ids.shape
    return {
        "batch": rows,
        "tokens": tokens,
        "patches": len(inputs.patches),
        "frame_patches": inputs.vision.frame_table.shape[1],
        "windows": len(inputs.vision.window_table),
        "grid_frames": len(inputs.vision.frame_table),
        "frames": 1 if clips is None else clips.frames.shape[1],
        "objects": max(inputs.seg_positions.shape[1], 0 if clips is None else clips.masks.shape[2]),
        "references": len(inputs.references.frames),
        "memories": inputs.memory_rows.shape[0],
        "memory_tokens": inputs.memory_rows.shape[1],
    }
