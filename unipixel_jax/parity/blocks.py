"""What each block of the towers computes for a recorded case, in float32 or bfloat16: where rounding enters, and how it grows from block to block.

A recording holds what whole towers return. Between the blocks our model can be compared with itself in another dtype.

P patches in bins, M merged tokens, T tokens, D width, F frames, h and w height and width of a feature map, C channels.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from unipixel_jax.batch import ModelInputs, VisionTables
from unipixel_jax.core.stacking import unstack
from unipixel_jax.errors import UserError
from unipixel_jax.models.unipixel import UniPixelModel
from unipixel_jax.ops.rope import grid_angles, mrope_angles
from unipixel_jax.parity.recording import Case
from unipixel_jax.parity.replay import Context, channels_last, model_inputs, vision_inputs


def outputs_by_block(case: Case, context: Context, dtype: jnp.dtype) -> dict[str, np.ndarray]:
    """Return what enters the first block of a tower, and what each block returns, in the order of computation.

    Args:
        case: one of the kind ``vision`` (the vision tower), ``multimodal`` (the language model) or ``sam2_image`` (SAM 2's image encoder).
        context: what the case needs.
        dtype: float32 or bfloat16, in which the blocks compute.

    Returns:
        Float32 arrays without padding: of the vision tower [M, 4, D] and of the language model [T, D], under ``embedding``, ``block 0``, ``block 1`` and so on;
        of SAM 2 [F, h, w, C], under ``stage 0`` to ``stage 3`` of the trunk and ``level 0`` to ``level 2`` of the neck.

    Raises:
        UserError: the case is of another kind.
    """
    model = context.loaded.model
    if case.kind == "vision":
        patches, tables, places = vision_inputs(case, context)
        outputs = [np.asarray(x, np.float32).reshape(-1, 4, x.shape[-1])[places] for x in _vision(model, patches.astype(dtype), jax.device_put(tables))]
    elif case.kind == "multimodal":
        inputs = model_inputs(case, context)
        outputs = [np.asarray(x, np.float32)[inputs.segments > 0] for x in _language(model, jax.device_put(inputs), dtype)]
    elif case.kind == "sam2_image":
        stages, levels = _sam2(model, channels_last(case.input("frames")).astype(dtype))
        named = {f"stage {i}": x for i, x in enumerate(stages)} | {f"level {i}": x for i, x in enumerate(levels)}
        return {name: np.asarray(x, np.float32) for name, x in named.items()}
    else:
        raise UserError(f"{case.name} is a case of the kind {case.kind}, expected vision, multimodal or sam2_image")
    return dict(zip(["embedding", *(f"block {i}" for i in range(len(outputs) - 1))], outputs, strict=True))


@jax.jit
def _vision(model: UniPixelModel, patches: jax.Array, tables: VisionTables) -> list[jax.Array]:
    tower, c = model.vision, model.vision.config
    angles = grid_angles(tables.rope, c.hidden_size // c.num_heads)
    rope = jnp.cos(angles), jnp.sin(angles)
    outputs = [tower.patch_embed(patches)]
    for layer, block in enumerate(unstack(tower.blocks)):
        outputs.append(block(outputs[-1], rope, tables, layer in c.fullatt_block_indexes))
    return outputs


@partial(jax.jit, static_argnames="dtype")
def _language(model: UniPixelModel, inputs: ModelInputs, dtype: jnp.dtype) -> list[jax.Array]:
    c = model.text.config
    angles = mrope_angles(inputs.position_ids, c.head_dim, c.rope_theta, c.mrope_section)
    rope = jnp.cos(angles), jnp.sin(angles)
    outputs = [model.embed(inputs, dtype)]
    for block in unstack(model.text.blocks):
        outputs.append(block(outputs[-1], rope, inputs.segments)[0])
    return outputs


@jax.jit
def _sam2(model: UniPixelModel, frames: jax.Array) -> tuple[list[jax.Array], list[jax.Array]]:
    stages = model.sam2.hiera(frames)
    features = model.sam2.encode(frames)
    return stages, [features.high0, features.high1, features.low]
