"""SAM 2 alone: the masks of a thing whose prompt is its code, of which the words or the place may be missing. In a clip only the first frame is prompted.

B clips, F frames (1 of an image), O things of a clip (padded), S side of the image.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from unipixel_jax.batch import TrainClips
from unipixel_jax.config import UniPixelConfig
from unipixel_jax.core.stacking import unstack_layers
from unipixel_jax.core.trees import KeyPath
from unipixel_jax.data.annotation import Annotation
from unipixel_jax.data.synthetic.scene import SIDE, draw_scene
from unipixel_jax.data.synthetic.task import point_inside
from unipixel_jax.losses.mask import MaskLossWeights
from unipixel_jax.models.unipixel import UniPixelModel
from unipixel_jax.processing.square import square_frames
from unipixel_jax.synthetic.appearance import filled, looks, prompt_code
from unipixel_jax.train.objective import clip_losses
from unipixel_jax.train.trainable import CONSTANTS

NO_PLACE, ANYWHERE = 0.1, 0.3
"""How often a prompt says no place, and how often the place is any point of the thing instead of its centre."""
PICTURES = ("hiera", "neck", "mask_decoder", "prompt_encoder")
"""All of SAM 2 that a single image needs."""
TRACKS = ("mask_decoder", "memory_attention", "memory_encoder", "maskmem_tpos_enc", "no_mem_embed", "obj_ptr_proj", "obj_ptr_tpos_proj")
"""What remembers, and what segments by it. What sees is at rest."""
OFF = (3.0, 3.0, 3.0, 9.0)
"""Standard deviations of a place's error in pixels, one of which is drawn: small ones of a language side that has looked, a large one of a thing that moves."""


def draw_targets(config: UniPixelConfig, frames: int, silent: float, annotation: Annotation, rng: np.random.Generator) -> tuple[NDArray[Any], ...]:
    """Of one clip of F ``frames``, with a share of ``silent`` prompts that say no words: frames [F, S, S, 3], looks [O, 3], places in the first frame
    [O, 2], masks [F, O, S, S] and which things are there [O].
    """
    scene = draw_scene(rng, frames)
    pixels = square_frames(scene.frames, config.sam2.image_size)
    look, count = looks(scene), len(scene.things)
    inside = np.stack([point_inside(scene, thing, 0, rng) for thing in range(count)])
    at = np.where(rng.random((count, 1)) < ANYWHERE, inside, scene.centres + rng.normal(size=(count, 2)) * rng.choice(OFF, (count, 1)))
    said = rng.random((count, 1))
    look = np.where(said < silent, -1, look).astype(np.int32)
    at = np.where(said > 1 - NO_PLACE, -1, np.clip(at / SIDE, 0, 1)).astype(np.float32)
    return pixels, filled(look, -1), filled(at, -1), filled(scene.masks, False).swapaxes(0, 1), filled(np.ones(count, bool), False)


def learns(parts: Sequence[str], path: KeyPath, value: Any) -> bool:
    """Whether a weight is of these parts of SAM 2, and not one of the position code's random frequencies."""
    return path[0] == "sam2" and path[1] in parts and path[-1] not in CONSTANTS


def segmenting_loss(weights: MaskLossWeights, model: UniPixelModel, batch: Sequence[jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The mask loss; and it again with its parts."""
    frames, look, at, masks, valid = batch
    unstack_layers(*model.sam2.hiera.stages)
    prompts = prompt_code(look, at, model.sam2.prompt_encoder.pe_matrix[...])
    clips = TrainClips(frames, jnp.full(frames.shape[0], frames.shape[1], jnp.int32), masks, valid)
    losses = clip_losses(model, prompts[:, :, None], clips, frames.dtype, weights, "none")
    total = losses.total(weights)
    return total, {"loss": total} | {field.name: getattr(losses, field.name) for field in dataclasses.fields(losses)}
