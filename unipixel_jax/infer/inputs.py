"""From the host's arrays to the model's."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from unipixel_jax.models.qwen_vl.vision import VisionTables
from unipixel_jax.models.unipixel import Prompt, References
from unipixel_jax.processing.batch import Inputs


def to_prompt(inputs: Inputs) -> Prompt:
    """The same batch on the device, in the form that ``UniPixelModel`` takes."""
    tables = {field.name: jnp.asarray(getattr(inputs.vision, field.name)) for field in dataclasses.fields(VisionTables)}
    references = {field.name: jnp.asarray(getattr(inputs.references, field.name)) for field in dataclasses.fields(References)}
    return Prompt(
        input_ids=jnp.asarray(inputs.input_ids),
        position_ids=jnp.asarray(inputs.position_ids),
        segments=jnp.asarray(inputs.segments),
        patches=jnp.asarray(inputs.patches),
        tables=VisionTables(**tables),
        vision_slots=jnp.asarray(inputs.vision_slots),
        references=References(**references),
        reference_slots=jnp.asarray(inputs.reference_slots),
        memory_rows=jnp.asarray(inputs.memory_rows),
        memory_slots=jnp.asarray(inputs.memory_slots),
    )
