"""The stages that train the language side alone: conversations about scenes, in which seg_head learns the code of what each ``<|seg|>`` stands for.

R conversations, K masks of a conversation (padded), T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from unipixel_jax.batch import ModelInputs, TrainBatch
from unipixel_jax.config import UniPixelConfig
from unipixel_jax.core.buckets import BucketTable
from unipixel_jax.data.annotation import Annotation
from unipixel_jax.data.assemble import Sample, prepare
from unipixel_jax.data.batch import collate
from unipixel_jax.data.synthetic.scene import SIDE, draw_scene
from unipixel_jax.data.synthetic.task import EVEN, Mix, conversation, example_of
from unipixel_jax.errors import UserError
from unipixel_jax.losses.lm import next_token_loss
from unipixel_jax.models.unipixel import UniPixelModel, unstack_towers
from unipixel_jax.processing.tokenizer import Tokenizer
from unipixel_jax.synthetic.appearance import appearance, pad_rows, prompt_code
from unipixel_jax.train.config import DataConfig

CODE_WEIGHT = 1.0
"""Weight of the codes' error beside the language loss. The error is 1 where seg_head gives zeros."""
MAX_MASKS = 8
"""The padded number of masks of a conversation, K."""
OCCLUSION = Mix(point=0.0, locate=0.0, find=(0.1, 0.1, 0.8), remember=0.0, words=0.0, paired=True)
"""Mostly questions for what lies behind another thing, which few scenes and questions of the other stages are about."""
RELATIONS = Mix(point=0.4, locate=0.25, find=(0.2, 0.45, 0.35), memories=0.6, remember=0.4, pair=0.8, single=0.15, paired=True)
"""More of the questions for which two things have to be compared or related, and of those that point at things."""
COMPARISON = Mix(point=0.3, locate=0.15, find=(0.25, 0.5, 0.25), memories=0.7, remember=0.5, pair=0.9, single=0.1, words=0.5)
"""More of the questions about two remembered things."""
VERDICT_WEIGHT = 10.0
"""How many times more the tokens count that begin a yes and a no, in the stage for comparison: they are few among many, and not learned otherwise."""


@dataclass(frozen=True)
class DrawLanguageSample:
    """Draws a conversation about a scene of its own.

    Attributes:
        tokenizer: for the conversation.
        config: sizes of the model.
        data: sizes of the conversation.
        mix: how often what is asked.
    """

    tokenizer: Tokenizer
    config: UniPixelConfig
    data: DataConfig
    mix: Mix = EVEN

    def __call__(self, annotation: Annotation, rng: np.random.Generator) -> tuple[Sample, NDArray[np.int32], NDArray[np.float32]]:
        """A sample, and the attributes [K, 3] and positions [K, 2] of what it segments."""
        scene, options, limit = draw_scene(rng), self.data.draw, self.data.max_tokens
        while self.mix.paired and not any(map(scene.behind, range(len(scene.things)))):
            scene = draw_scene(rng)
        turns = conversation(scene, options.max_turns, rng, masks=rng.random() >= self.mix.words, mix=self.mix)
        sample = prepare(example_of(annotation, scene, turns, options, rng, masks=False), self.tokenizer, self.config, rng)
        if limit is not None and sample.tokens > limit:
            raise UserError(f"{sample.tokens} tokens, expected at most {limit}")
        segmented = [thing for _, question in turns for thing in question.segmented]
        positions = (scene.centres / SIDE).astype(np.float32)
        return sample, pad_rows(appearance(scene)[segmented], -1, MAX_MASKS), pad_rows(positions[segmented], -1, MAX_MASKS)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LanguageBatch:
    """Conversations, and what seg_head should say in them.

    Attributes:
        rows: the conversations, one a row.
        at: [R, K] int32, the position in the row just before each ``<|seg|>``.
        attributes: [R, K, 3] int32, numbers of the words of the thing's name; -1 for padding.
        positions: [R, K, 2] float32, its centre as shares of the image; -1 for padding.
    """

    rows: TrainBatch
    at: jax.Array
    attributes: jax.Array
    positions: jax.Array


def verdict_weights(tokenizer: Tokenizer) -> Mapping[int, float]:
    """The tokens that begin a yes and a no, with ``VERDICT_WEIGHT``. The token that begins a no is a space, which also stands between a thing's number and its
    ``<|seg|>``.
    """
    return {tokenizer.backend.encode(f": {word}", add_special_tokens=False).ids[1]: VERDICT_WEIGHT for word in ("yes", "no")}


def collate_language(
    config: UniPixelConfig,
    pad_id: int,
    buckets: BucketTable,
    weights: Mapping[int, float],
    samples: Sequence[tuple[Sample, NDArray[np.int32], NDArray[np.float32]]],
) -> LanguageBatch:
    """A batch with one conversation a row; ``weights`` says for some tokens how many times more they count than others."""
    arrays = collate([sample for sample, _, _ in samples], [[i] for i in range(len(samples))], len(samples), config, pad_id, buckets)
    for token, weight in weights.items():
        arrays.label_weights[arrays.labels == token] *= weight
    ids = arrays.inputs.input_ids[:, 0]
    at = np.stack([pad_rows(np.flatnonzero(row[1:] == config.seg_token_id).astype(np.int32), 0, MAX_MASKS) for row in ids])
    attributes = np.stack([attributes for _, attributes, _ in samples])
    positions = np.stack([positions for _, _, positions in samples])
    return LanguageBatch(arrays, at, attributes, positions)  # type: ignore[arg-type]


def language_loss(model: UniPixelModel, batch: LanguageBatch) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Language loss plus the codes' mean squared error relative to a code's mean square; and metrics: this sum and its parts."""
    unstack_towers(model)
    embedded = model.text.embed(batch.rows.inputs.input_ids, jnp.float32)

    def one(x: jax.Array, inputs: ModelInputs) -> jax.Array:
        return model.text(model.merge_embeddings(x, inputs), inputs.position_ids, inputs.segments)[0]

    hidden = jax.vmap(one)(embedded, batch.rows.inputs)
    normed = model.text.norm(hidden)
    labels, weights = batch.rows.labels[:, 0], batch.rows.label_weights[:, 0]
    language, (seg_said, segs) = next_token_loss(normed, model.text.head_weight, labels, weights, model.config.seg_token_id)
    said = model.seg_head(jnp.take_along_axis(hidden, batch.at[..., None], axis=1))[:, :, 0]
    meant = prompt_code(batch.attributes, batch.positions, model.sam2.prompt_encoder.pe_matrix[...])
    there = (batch.attributes[..., 0] >= 0)[..., None].astype(jnp.float32)
    code = jnp.sum(jnp.square(said - meant) * there) / jnp.maximum(jnp.sum(jnp.square(meant) * there), 1.0)
    total = language + CODE_WEIGHT * code
    return total, {"loss": total, "language": language, "code": code, "seg_rate": seg_said / jnp.maximum(segs, 1.0)}
