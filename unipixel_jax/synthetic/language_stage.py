"""The language side alone: conversations about scenes, in which seg_head is to say the code of what each ``<|seg|>`` stands for. SAM 2 is not needed.

R conversations, K masks of a conversation (padded).
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
from unipixel_jax.synthetic.appearance import filled, looks, prompt_code
from unipixel_jax.train.config import DataConfig

CODE = 1.0
"""Weight of the codes' error, which is 1 for silence, beside the language loss."""
MASKS = 8
"""K."""
BEHIND = Mix(point=0.0, locate=0.0, find=(0.1, 0.1, 0.8), remember=0.0, words=0.0, paired=True)
"""Little but what lies behind another thing, which few scenes and questions of the others are about."""
RELATIONS = Mix(point=0.4, locate=0.25, find=(0.2, 0.45, 0.35), memories=0.6, remember=0.4, pair=0.8, single=0.15, paired=True)
"""More of what needs two things to be looked at, and of what is pointed at."""
COMPARING = Mix(point=0.3, locate=0.15, find=(0.25, 0.5, 0.25), memories=0.7, remember=0.5, pair=0.9, single=0.1, words=0.5)
"""More of what is remembered in pairs."""
VERDICT = 10.0
"""How many times more the tokens count that begin a yes and a no, where comparing is taught: few among many, they are not learned otherwise."""


@dataclass(frozen=True)
class DrawTold:
    """Draws conversations."""

    tokenizer: Tokenizer
    config: UniPixelConfig
    data: DataConfig
    mix: Mix = EVEN

    def __call__(self, annotation: Annotation, rng: np.random.Generator) -> tuple[Sample, NDArray[np.int32], NDArray[np.float32]]:
        """A sample, and the looks [K, 3] and places [K, 2] of what it segments."""
        scene, options, limit = draw_scene(rng), self.data.draw, self.data.max_tokens
        while self.mix.paired and not any(map(scene.behind, range(len(scene.things)))):
            scene = draw_scene(rng)
        turns = conversation(scene, options.max_turns, rng, masks=rng.random() >= self.mix.words, mix=self.mix)
        sample = prepare(example_of(annotation, scene, turns, options, rng, masks=False), self.tokenizer, self.config, rng)
        if limit is not None and sample.tokens > limit:
            raise UserError(f"{sample.tokens} tokens, expected at most {limit}")
        segmented = [thing for _, question in turns for thing in question.segmented]
        places = (scene.centres / SIDE).astype(np.float32)
        return sample, filled(looks(scene)[segmented], -1, MASKS), filled(places[segmented], -1, MASKS)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Told:
    """Attributes:
    rows: the conversations.
    at: [R, K] int32, the positions just before each ``<|seg|>``.
    looks: [R, K, 3] int32; -1 for padding.
    places: [R, K, 2] float32; -1 for padding.
    """

    rows: TrainBatch
    at: jax.Array
    looks: jax.Array
    places: jax.Array


def verdicts(tokenizer: Tokenizer) -> Mapping[int, float]:
    """The tokens that begin a yes and a no, and how much they count; that of a no, a space, also stands between a thing's number and its ``<|seg|>``."""
    return {tokenizer.backend.encode(f": {word}", add_special_tokens=False).ids[1]: VERDICT for word in ("yes", "no")}


def collate_told(
    config: UniPixelConfig,
    pad_id: int,
    buckets: BucketTable,
    counts: Mapping[int, float],
    samples: Sequence[tuple[Sample, NDArray[np.int32], NDArray[np.float32]]],
) -> Told:
    """One conversation a row; ``counts`` says for some tokens how many times more they count than others."""
    arrays = collate([sample for sample, _, _ in samples], [[i] for i in range(len(samples))], len(samples), config, pad_id, buckets)
    for token, count in counts.items():
        arrays.label_weights[arrays.labels == token] *= count
    ids = arrays.inputs.input_ids[:, 0]
    at = np.stack([filled(np.flatnonzero(row[1:] == config.seg_token_id).astype(np.int32), 0, MASKS) for row in ids])
    return Told(arrays, at, np.stack([look for _, look, _ in samples]), np.stack([place for _, _, place in samples]))  # type: ignore[arg-type]


def telling_loss(model: UniPixelModel, batch: Told) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Language loss and the codes' mean squared error, relative to a code's mean square."""
    unstack_towers(model)
    embedded = model.text.embed(batch.rows.inputs.input_ids, jnp.float32)

    def one(x: jax.Array, inputs: ModelInputs) -> jax.Array:
        return model.text(model.fill(x, inputs), inputs.position_ids, inputs.segments)[0]

    hidden = jax.vmap(one)(embedded, batch.rows.inputs)
    normed = model.text.norm(hidden)
    labels, weights = batch.rows.labels[:, 0], batch.rows.label_weights[:, 0]
    language, (seg_said, segs) = next_token_loss(normed, model.text.head_weight, labels, weights, model.config.seg_token_id)
    said = model.seg_head(jnp.take_along_axis(hidden, batch.at[..., None], axis=1))[:, :, 0]
    meant = prompt_code(batch.looks, batch.places, model.sam2.prompt_encoder.pe_matrix[...])
    there = (batch.looks[..., 0] >= 0)[..., None].astype(jnp.float32)
    code = jnp.sum(jnp.square(said - meant) * there) / jnp.maximum(jnp.sum(jnp.square(meant) * there), 1.0)
    total = language + CODE * code
    return total, {"loss": total, "language": language, "code": code, "seg_rate": seg_said / jnp.maximum(segs, 1.0)}
