"""From the host's arrays to the model's."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from unipixel_jax.models.qwen_vl.vision import VisionTables
from unipixel_jax.models.unipixel import Prompt, References
from unipixel_jax.processing.batch import Inputs


def to_prompt(inputs: Inputs) -> Prompt:
    """The same batch on the device, in the form that ``UniPixelModel`` takes."""
    length = inputs.input_ids.shape[1]
    tables = {field.name: getattr(inputs.vision, field.name) for field in dataclasses.fields(VisionTables)}
    references = {field.name: getattr(inputs.references, field.name) for field in dataclasses.fields(References)}
    prompt = Prompt(
        input_ids=inputs.input_ids,
        position_ids=inputs.position_ids,
        segments=(np.arange(length)[None] >= length - inputs.lengths[:, None]).astype(np.int32),
        patches=inputs.patches,
        tables=VisionTables(**tables),
        vision_slots=inputs.vision_slots,
        references=References(**references),
        reference_slots=inputs.reference_slots,
        memory_rows=inputs.memory_rows,
        memory_slots=inputs.memory_slots,
    )
    return jax.tree.map(jnp.asarray, prompt)
