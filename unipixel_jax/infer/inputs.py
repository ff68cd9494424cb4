"""From the host's arrays to the model's."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from unipixel_jax.models.qwen_vl.vision import VisionTables
from unipixel_jax.models.unipixel import Prompt, References
from unipixel_jax.processing.batch import Inputs


def prompt_arrays(inputs: Inputs) -> Prompt:
    """The same batch in the form that ``UniPixelModel`` takes, still on the host."""
    tables = {field.name: getattr(inputs.vision, field.name) for field in dataclasses.fields(VisionTables)}
    references = {field.name: getattr(inputs.references, field.name) for field in dataclasses.fields(References)}
    own = [field.name for field in dataclasses.fields(Prompt) if field.name not in ("tables", "references")]
    return Prompt(tables=VisionTables(**tables), references=References(**references), **{name: getattr(inputs, name) for name in own})


def to_prompt(inputs: Inputs) -> Prompt:
    """The same batch on the device."""
    return jax.tree.map(jnp.asarray, prompt_arrays(inputs))
