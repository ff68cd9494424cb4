"""The stage that trains the vision tower and all else that brings something into the language model's space: images, points, boxes and remembered things.

One linear layer, the same for all of them, reads from each token what it stands for. So tokens that stand for the same thing become alike, wherever they come
from.

B images, O things of an image (padded), E references (one a thing), M merged tokens, P patches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import reduce
from flax import nnx
from numpy.typing import NDArray

from unipixel_jax.batch import References, VisionTables
from unipixel_jax.config import UniPixelConfig
from unipixel_jax.core.buckets import Buckets, BucketTable
from unipixel_jax.data.annotation import Annotation
from unipixel_jax.data.synthetic.scene import COLOURS, SIDE, draw_scene
from unipixel_jax.data.synthetic.task import refer
from unipixel_jax.models.layers import Linear
from unipixel_jax.models.unipixel import UniPixelModel, unstack_towers
from unipixel_jax.processing.memory import memory_grid
from unipixel_jax.processing.patchify import patchify
from unipixel_jax.processing.prompts import reference_table
from unipixel_jax.processing.resize import language_frames
from unipixel_jax.processing.vision_index import build_vision_index, place_patches
from unipixel_jax.synthetic.appearance import ATTRIBUTES, MAX_THINGS, appearance, pad_rows

MIN_FIRST = 0.25
"""Share of a token's pixels that a thing must cover at least for the token to show it."""
MIN_SECOND = 1 / 32
"""Share of a token's pixels that a second thing must cover at least for the token to show that one too."""
ASKED = ("size", "colour", "shape", "row", "column")
"""What is read from every kind of token. From vision tokens the colour of a second thing is read too, so that they tell what lies behind another thing."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class VisionBatch:
    """Images for the vision tower, and what should be read from them.

    Attributes:
        patches: [B, P, patch_dim] float32, in the order of the tower.
        shown: [B, M, 6] int32. Of the thing that a token shows: size, colour and shape, -1 where there is none. Of the token: row and column. Of the second
            thing that it shows: the colour; the number of colours where there is none, -1 where the first is missing.
        under: [B, O, M] int32, the tokens that a thing touches, padded with M.
        things: [B, O, 5] int32, size, colour, shape, row and column of a thing; -1 for padding.
        references: a point or a box for each thing; every array has a leading axis B.
        pointed: [B, O, 2] int32, row and column of the middle of each reference; -1 for padding.
    """

    patches: jax.Array
    shown: jax.Array
    under: jax.Array
    things: jax.Array
    references: References
    pointed: jax.Array


class VisionProbe(UniPixelModel):
    """The model with a linear layer that reads from its tokens. The layer is thrown away after the stage."""

    def __init__(self, config: UniPixelConfig, rngs: nnx.Rngs) -> None:
        super().__init__(config, rngs)
        self.counts = (*map(len, ATTRIBUTES), grid_side(config), grid_side(config), len(COLOURS) + 1)
        self.probe = Linear(config.text.hidden_size, sum(self.counts), (None, None), rngs)

    def loss(self, tables: VisionTables, batch: VisionBatch) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The sum of the cross-entropies of all that is read; and metrics: this sum, and how often each is right."""
        unstack_towers(self)
        places = vision_layout(self.config)[1]

        def one(patches: jax.Array, under: jax.Array, references: References) -> tuple[jax.Array, ...]:
            tokens, merger_input = (a[places] for a in self.vision(patches, tables))
            return tokens, self.memory_features(merger_input, under), self.encode_references(references, tokens.dtype)

        tokens, things, pointed = jax.vmap(one)(batch.patches, batch.under, batch.references)
        answers = {
            **self._answers("token", tokens, batch.shown, (*ASKED, "beside")),
            **self._answers("thing", things, batch.things, ASKED),
            **self._answers("pointed", pointed, jnp.pad(batch.pointed, ((0, 0), (0, 0), (3, 0)), constant_values=-1), ("", "", "", "row", "column")),
        }
        total = jnp.sum(jnp.stack([loss for loss, _ in answers.values()]))
        return total, {"loss": total} | {name: right for name, (_, right) in answers.items()}

    def _answers(self, what: str, x: jax.Array, right: jax.Array, names: Sequence[str]) -> dict[str, tuple[jax.Array, jax.Array]]:
        answers = jnp.split(self.probe(x), np.cumsum(self.counts)[:-1], axis=-1)
        return {f"{what}_{name}": _loss_and_accuracy(own, right[..., i]) for i, (name, own) in enumerate(zip(names, answers, strict=False)) if name}


def _loss_and_accuracy(logits: jax.Array, right: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean cross-entropy and share of right answers, over those that are not -1.

    Args:
        logits: [..., C] float32.
        right: [...] int32, numbers below C or -1.
    """
    counts = (right >= 0).astype(jnp.float32)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(right, 0))
    hit = (jnp.argmax(logits, axis=-1) == right).astype(jnp.float32)
    return jnp.sum(loss * counts) / jnp.maximum(jnp.sum(counts), 1.0), jnp.sum(hit * counts) / jnp.maximum(jnp.sum(counts), 1.0)


def draw_vision_sample(config: UniPixelConfig, annotation: Annotation, rng: np.random.Generator) -> Mapping[str, Any]:
    """The arrays of ``VisionBatch``, without B, for one image, or for two frames of a clip, which the tower reads together."""
    scene = draw_scene(rng, int(rng.integers(1, 3)))
    count, side = len(scene.things), grid_side(config)
    arrived, grid = patchify(language_frames(scene.frames, len(scene.frames), config.vision.merge_size), config.vision)
    tables, places = vision_layout(config)
    patches = np.zeros((len(tables.rope), arrived.shape[1]), arrived.dtype)
    place_patches([arrived], places, patches)
    attributes = appearance(scene)
    cover = reduce(scene.masks[:, 0].astype(float), "things (rows h) (columns w) -> things (rows columns)", "mean", rows=side, columns=side)
    first, second = np.argsort(-cover, axis=0, kind="stable")[:2]
    most, next_most = -np.sort(-cover, axis=0)[:2]
    beside = np.where(next_most >= MIN_SECOND, attributes[second, ATTRIBUTES.index(tuple(COLOURS))], len(COLOURS))
    shows = most[:, None] >= MIN_FIRST
    rows, columns = np.divmod(np.arange(side**2), side)
    touched = memory_grid(scene.masks, grid, config.vision)[0].reshape(count, -1)
    under = np.where(touched, np.arange(side**2), side**2).astype(np.int32)
    references = [refer(scene, thing, rng) for thing in range(count)]
    middles = np.stack([reference.coords.mean(axis=0) for reference in references])
    things = np.concatenate([attributes, _cells(scene.centres, side)], axis=1)
    return {
        "patches": patches,
        "shown": np.concatenate(
            [np.where(shows, attributes[first], -1), rows[:, None], columns[:, None], np.where(shows, beside[:, None], -1)], axis=1
        ).astype(np.int32),
        "under": pad_rows(under, side**2),
        "things": pad_rows(things.astype(np.int32), -1),
        "references": reference_table([(reference, config.vision.temporal_patch_size) for reference in references], Buckets("", MAX_THINGS, 1.0, MAX_THINGS)),
        "pointed": pad_rows(_cells(middles, side), -1),
    }


def collate_vision(samples: Sequence[Mapping[str, Any]]) -> VisionBatch:
    """A batch of drawn samples."""
    tables: list[References] = [sample["references"] for sample in samples]
    names = [field.name for field in dataclasses.fields(References)]
    references = References(**{name: np.stack([getattr(table, name) for table in tables]) for name in names})
    return VisionBatch(references=references, **{name: np.stack([s[name] for s in samples]) for name in samples[0] if name != "references"})  # type: ignore[arg-type]


def _cells(at: NDArray[np.floating], side: int) -> NDArray[np.int32]:
    """Rows and columns of the tokens at places (x, y) [..., 2], in pixels."""
    return np.clip(at[..., ::-1] * side / SIDE, 0, side - 1).astype(np.int32)


def grid_side(config: UniPixelConfig) -> int:
    """Side of the grid of merged tokens that an image of a scene becomes."""
    return int(language_frames(np.zeros((1, SIDE, SIDE, 3), np.uint8), 1, config.vision.merge_size).shape[1] // config.vision.merge_size)


@cache
def vision_layout(config: UniPixelConfig) -> tuple[VisionTables, NDArray[np.int32]]:
    """The vision tower's index tables for one image, and where the tower holds each of its merged tokens."""
    side, window = grid_side(config) * config.vision.spatial_merge_size, config.vision.window_patches
    sizes = BucketTable(patches=Buckets("patches", window, 1.0, 1 << 16), grid_frames=Buckets("frames", 1, 1.0, 1))
    return build_vision_index([[1, side, side]], config.vision, sizes)


def vision_tables(config: UniPixelConfig) -> VisionTables:
    """The index tables of one image, on the device."""
    return jax.device_put(vision_layout(config)[0])
