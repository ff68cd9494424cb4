"""The vision tower and all that brings something into the language model's space: images, points, boxes and remembered things. Each of their tokens learns to
tell what it stands for to one linear layer, the same for all of them, so that alike means alike whatever it comes from.

B images, O things of an image (padded), E references (one a thing), M merged tokens, G side of their grid.
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
from unipixel_jax.synthetic.appearance import LOOKS, THINGS, filled, looks

SHOWN = 0.25
"""A token shows a thing that covers at least this share of it."""
GLIMPSED = 1 / 32
"""A token that shows a thing also shows a part of another that covers at least this share of it."""
PLACED = ("size", "colour", "shape", "row", "column")
"""What is asked of all; of tokens also the colour of a second thing beside, which is how what lies behind another is found."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sights:
    """Images for the vision tower.

    Attributes:
        patches: [B, P, patch_dim] float32, in the order of the tower.
        shown: [B, M, 6] int32: size, colour and shape of the thing that a token shows, -1 for none; its row and its column; and the colour of the second
            thing in it, the number of colours for none, -1 where the first is missing.
        under: [B, O, M] int32, the tokens that a thing touches, filled up with M.
        things: [B, O, 5] int32: size, colour, shape, row and column of a thing; -1 for padding.
        references: a point or a box for each thing; every array with B in front.
        pointed: [B, O, 2] int32, row and column of the middle of each; -1 for padding.
    """

    patches: jax.Array
    shown: jax.Array
    under: jax.Array
    things: jax.Array
    references: References
    pointed: jax.Array


class Sight(UniPixelModel):
    """The model with the layer that asks it."""

    def __init__(self, config: UniPixelConfig, rngs: nnx.Rngs) -> None:
        super().__init__(config, rngs)
        self.counts = (*map(len, LOOKS), side_of(config), side_of(config), len(COLOURS) + 1)
        self.tell = Linear(config.text.hidden_size, sum(self.counts), (None, None), rngs)

    def loss(self, tables: VisionTables, batch: Sights) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The sum of all questions' losses, and it again with how often each is answered right."""
        unstack_towers(self)
        places = layout_of(self.config)[1]

        def one(patches: jax.Array, under: jax.Array, references: References) -> tuple[jax.Array, ...]:
            tokens, merger_input = (a[places] for a in self.vision(patches, tables))
            return tokens, self.memory_features(merger_input, under), self.encode_references(references, tokens.dtype)

        tokens, things, pointed = jax.vmap(one)(batch.patches, batch.under, batch.references)
        asked = {
            **self._asked("token", tokens, batch.shown, (*PLACED, "beside")),
            **self._asked("thing", things, batch.things, PLACED),
            **self._asked("pointed", pointed, jnp.pad(batch.pointed, ((0, 0), (0, 0), (3, 0)), constant_values=-1), ("", "", "", "row", "column")),
        }
        total = jnp.sum(jnp.stack([loss for loss, _ in asked.values()]))
        return total, {"loss": total} | {name: right for name, (_, right) in asked.items()}

    def _asked(self, what: str, x: jax.Array, right: jax.Array, names: Sequence[str]) -> dict[str, tuple[jax.Array, jax.Array]]:
        answers = jnp.split(self.tell(x), np.cumsum(self.counts)[:-1], axis=-1)
        return {f"{what}_{name}": _choose(own, right[..., i]) for i, (name, own) in enumerate(zip(names, answers, strict=False)) if name}


def _choose(logits: jax.Array, right: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean cross-entropy and share of right answers over those that are not -1."""
    counts = (right >= 0).astype(jnp.float32)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(right, 0))
    hit = (jnp.argmax(logits, axis=-1) == right).astype(jnp.float32)
    return jnp.sum(loss * counts) / jnp.maximum(jnp.sum(counts), 1.0), jnp.sum(hit * counts) / jnp.maximum(jnp.sum(counts), 1.0)


def draw_sights(config: UniPixelConfig, annotation: Annotation, rng: np.random.Generator) -> Mapping[str, Any]:
    """The arrays of ``Sights`` for one image, or for two frames of a clip, which the tower reads together."""
    scene = draw_scene(rng, int(rng.integers(1, 3)))
    count, side = len(scene.things), side_of(config)
    arrived, grid = patchify(language_frames(scene.frames, len(scene.frames), config.vision.merge_size), config.vision)
    index, places = layout_of(config)
    patches = np.zeros((len(index.rope), arrived.shape[1]), arrived.dtype)
    place_patches([arrived], places, patches)
    look = looks(scene)
    cover = scene.masks[:, 0].reshape(count, side, SIDE // side, side, SIDE // side).mean(axis=(2, 4)).reshape(count, -1)
    first, second = np.argsort(-cover, axis=0, kind="stable")[:2]
    most, next_most = -np.sort(-cover, axis=0)[:2]
    beside = np.where(next_most >= GLIMPSED, look[second, LOOKS.index(tuple(COLOURS))], len(COLOURS))
    shows = most[:, None] >= SHOWN
    rows, columns = np.divmod(np.arange(side**2), side)
    touched = memory_grid(scene.masks, grid, config.vision)[0].reshape(count, -1)
    under = np.where(touched, np.arange(side**2), side**2).astype(np.int32)
    references = [refer(scene, thing, rng) for thing in range(count)]
    middles = np.stack([reference.coords.mean(axis=0) for reference in references])
    things = np.concatenate([look, _cells(scene.centres, side)], axis=1)
    return {
        "patches": patches,
        "shown": np.concatenate(
            [np.where(shows, look[first], -1), rows[:, None], columns[:, None], np.where(shows, beside[:, None], -1)], axis=1
        ).astype(np.int32),
        "under": filled(under, side**2),
        "things": filled(things.astype(np.int32), -1),
        "references": reference_table([(reference, config.vision.temporal_patch_size) for reference in references], Buckets("", THINGS, 1.0, THINGS)),
        "pointed": filled(_cells(middles, side), -1),
    }


def collate_sights(samples: Sequence[Mapping[str, Any]]) -> Sights:
    """With B in front."""
    tables: list[References] = [sample["references"] for sample in samples]
    names = [field.name for field in dataclasses.fields(References)]
    references = References(**{name: np.stack([getattr(table, name) for table in tables]) for name in names})
    return Sights(references=references, **{name: np.stack([s[name] for s in samples]) for name in samples[0] if name != "references"})  # type: ignore[arg-type]


def _cells(at: NDArray[np.floating], side: int) -> NDArray[np.int32]:
    """Rows and columns of the tokens at places (x, y) [..., 2], in pixels."""
    return np.clip(at[..., ::-1] * side / SIDE, 0, side - 1).astype(np.int32)


def side_of(config: UniPixelConfig) -> int:
    """Of the grid of tokens that a scene becomes."""
    return int(language_frames(np.zeros((1, SIDE, SIDE, 3), np.uint8), 1, config.vision.merge_size).shape[1] // config.vision.merge_size)


@cache
def layout_of(config: UniPixelConfig) -> tuple[VisionTables, NDArray[np.int32]]:
    """The vision tower's tables for one image, and where its tokens lie in the tower."""
    side, window = side_of(config) * config.vision.spatial_merge_size, config.vision.window_patches
    sizes = BucketTable(patches=Buckets("patches", window, 1.0, 1 << 16), grid_frames=Buckets("frames", 1, 1.0, 1))
    return build_vision_index([[1, side, side]], config.vision, sizes)


def tables_of(config: UniPixelConfig) -> VisionTables:
    """Of one image."""
    return jax.device_put(layout_of(config)[0])
