"""The stages that train SAM 2 alone: the prompt of a thing is its code, of which the words or the position may be missing, and the target is its mask.

In a clip only the first frame is prompted.

B clips, F frames (1 of an image), O things of a clip (padded), S side of the frames.
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
from unipixel_jax.core.dropout import fold
from unipixel_jax.core.stacking import unstack_layers
from unipixel_jax.core.trees import KeyPath
from unipixel_jax.data.annotation import Annotation
from unipixel_jax.data.synthetic.scene import SIDE, draw_scene
from unipixel_jax.data.synthetic.task import point_inside
from unipixel_jax.losses.mask import MaskLosses, MaskLossWeights
from unipixel_jax.models.unipixel import UniPixelModel
from unipixel_jax.processing.square import square_frames
from unipixel_jax.synthetic.appearance import appearance, pad_rows, prompt_code
from unipixel_jax.train.objective import clip_losses
from unipixel_jax.train.trainable import CONSTANTS

NO_POSITION, ANYWHERE = 0.1, 0.3
"""How often a prompt says no position, and how often the position is any point of the thing instead of its centre."""
IMAGE_PARTS = ("hiera", "neck", "mask_decoder", "prompt_encoder")
"""The parts of SAM 2 that a single image needs."""
TRACKING_PARTS = ("mask_decoder", "memory_attention", "memory_encoder", "maskmem_tpos_enc", "no_mem_embed", "obj_ptr_proj", "obj_ptr_tpos_proj")
"""The parts of SAM 2 that make and read memories, and the decoder that segments with them. The image encoder is not trained on clips."""
POSITION_ERRORS = (3.0, 3.0, 3.0, 9.0)
"""Standard deviations of a position's error in pixels, of which one is drawn: small ones as of the language side, and a large one as of a thing that moves."""


def draw_targets(config: UniPixelConfig, frames: int, wordless: float, annotation: Annotation, rng: np.random.Generator) -> tuple[NDArray[Any], ...]:
    """Draw one clip with the prompts and masks of its things.

    Args:
        config: sizes of the model.
        frames: F.
        wordless: share of prompts that say no words.
        annotation: it says nothing, since every scene is drawn anew.
        rng: of the scene and the prompts.

    Returns:
        Normalised frames [F, S, S, 3], attributes [O, 3], positions in the first frame [O, 2] (see ``prompt_code``), masks [F, O, S, S], and which things are
        there [O].
    """
    scene = draw_scene(rng, frames)
    pixels = square_frames(scene.frames, config.sam2.image_size)
    attributes, count = appearance(scene), len(scene.things)
    inside = np.stack([point_inside(scene, thing, 0, rng) for thing in range(count)])
    positions = np.where(rng.random((count, 1)) < ANYWHERE, inside, scene.centres + rng.normal(size=(count, 2)) * rng.choice(POSITION_ERRORS, (count, 1)))
    said = rng.random((count, 1))
    attributes = np.where(said < wordless, -1, attributes).astype(np.int32)
    positions = np.where(said > 1 - NO_POSITION, -1, np.clip(positions / SIDE, 0, 1)).astype(np.float32)
    return pixels, pad_rows(attributes, -1), pad_rows(positions, -1), pad_rows(scene.masks, False).swapaxes(0, 1), pad_rows(np.ones(count, bool), False)


def is_trained(parts: Sequence[str], path: KeyPath, value: Any) -> bool:
    """Whether a weight belongs to these parts of SAM 2, and is not one of the position code's random frequencies."""
    return path[0] == "sam2" and path[1] in parts and path[-1] not in CONSTANTS


def segmentation_loss(weights: MaskLossWeights, model: UniPixelModel, batch: Sequence[jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The mask loss; and metrics: this loss and its parts. ``batch`` holds the arrays of ``draw_targets``, each with a leading axis B."""
    frames, attributes, positions, masks, valid = batch
    unstack_layers(*model.sam2.hiera.stages)
    prompts = prompt_code(attributes, positions, model.sam2.prompt_encoder.pe_matrix[...])
    clips = TrainClips(frames, jnp.full(frames.shape[0], frames.shape[1], jnp.int32), masks, valid)

    def one(tokens: jax.Array, clip: TrainClips, number: jax.Array) -> MaskLosses:
        return clip_losses(fold(model, number), tokens, clip, frames.dtype, weights, "none")

    losses = jax.tree.map(jnp.mean, jax.vmap(one)(prompts[:, :, None], clips, jnp.arange(len(frames))))
    total = losses.total(weights)
    return total, {"loss": total} | {field.name: getattr(losses, field.name) for field in dataclasses.fields(losses)}
