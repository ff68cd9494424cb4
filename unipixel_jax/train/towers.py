"""The two towers of the small model, each taught alone before the language side comes: what Qwen2.5-VL's and SAM 2.1's own training is to UniPixel.

The vision tower learns to tell the look and the place of what its tokens show, and of what a mask covers; SAM 2 learns to segment what a full name names. Both
are asked through layers that are thrown away afterwards: one linear layer over tokens and one over averages under masks; and an embedding of each word of
a name, whose sum takes the place of seg_head's token.

B pictures, O things of a picture (padded), M merged tokens, S side of the picture.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from numpy.typing import NDArray

from unipixel_jax.config import UniPixelConfig
from unipixel_jax.core.blocks import KeyPath
from unipixel_jax.core.buckets import Ladder, Ladders
from unipixel_jax.core.params import declare, unit_normal
from unipixel_jax.core.stacking import unstack_layers
from unipixel_jax.data.annotation import Annotation
from unipixel_jax.data.loader import Loader, LoaderOptions
from unipixel_jax.data.pipeline import open_mixture
from unipixel_jax.data.shapes.scene import COLOURS, RADII, SHAPES, SIDE, Scene, draw_scene
from unipixel_jax.losses.mask import MaskLosses, MaskLossWeights
from unipixel_jax.models.layers import Linear
from unipixel_jax.models.qwen_vl.vision import VisionTables, VisionTower
from unipixel_jax.models.sam2.tracker import Sam2
from unipixel_jax.processing.memory import memory_grid
from unipixel_jax.processing.patchify import patchify
from unipixel_jax.processing.resize import language_frames
from unipixel_jax.processing.square import square_frames
from unipixel_jax.processing.vision_index import build_vision_index
from unipixel_jax.train.metrics import Watch
from unipixel_jax.train.objective import TrainClips, clip_losses
from unipixel_jax.train.optim import OptimConfig, make_optimizer
from unipixel_jax.train.trainable import groups, trained

LOOKS = (tuple(RADII), tuple(COLOURS), SHAPES)
"""What a name is made of: the sizes, colours and shapes that there are."""
THINGS = 5
"""O."""
SHOWN = 0.25
"""A token shows a thing that covers at least this share of it."""
CENTRE_WEIGHT = 3.0
"""Of the error of a thing's centre, beside losses of one for each choice."""
LOG_EVERY = 50

M = TypeVar("M", bound=nnx.Module)


@dataclass(frozen=True)
class Lesson:
    """How long and how fast a tower is taught.

    Attributes:
        steps: of the optimizer.
        batch_size: B.
        optim: learning rate and the like.
    """

    steps: int
    batch_size: int
    optim: OptimConfig


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sights:
    """Pictures for the vision tower.

    Attributes:
        patches: [B, P, patch_dim] float32.
        under: [B, O, M] float32, 1 for the tokens that a thing touches.
        looks: [B, O, 3] int32, numbers of its size, colour and shape; -1 for padding.
        centres: [B, O, 2] float32, x and y as shares of the picture.
        shown: [B, M, 3] int32, the look of the thing that each token shows; -1 for none.
    """

    patches: jax.Array
    under: jax.Array
    looks: jax.Array
    centres: jax.Array
    shown: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Targets:
    """Pictures for SAM 2.

    Attributes:
        frames: [B, S, S, 3] float32, normalised.
        looks: [B, O, 3] int32, as above, of the thing to segment.
        masks: [B, O, S, S] booleans.
        valid: [B, O] booleans.
    """

    frames: jax.Array
    looks: jax.Array
    masks: jax.Array
    valid: jax.Array


class Sight(nnx.Module):
    """The vision tower with what asks it."""

    def __init__(self, config: UniPixelConfig, rngs: nnx.Rngs) -> None:
        c, choices = config.vision, sum(map(len, LOOKS))
        self.vision = VisionTower(c, rngs)
        self.of_tokens = Linear(c.out_hidden_size, choices + 2 * _side(config), (None, None), rngs)
        self.of_things = Linear(c.merge_dim, choices + 2, (None, None), rngs)
        self.side = _side(config)

    def loss(self, batch: Sights, tables: VisionTables) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss, and it again with how often each question is answered right."""
        unstack_layers(self.vision)
        tokens, merger_input = jax.vmap(lambda patches: self.vision(patches, tables))(batch.patches)
        mean = jnp.einsum("bom,bmd->bod", batch.under, merger_input) / jnp.maximum(jnp.sum(batch.under, axis=2, keepdims=True), 1.0)
        things, seen = self.of_things(mean), self.of_tokens(tokens)
        counts = [len(choices) for choices in LOOKS]
        row, column = (jnp.broadcast_to(part.reshape(-1), batch.shown.shape[:2]) for part in jnp.indices((self.side, self.side), jnp.int32))
        asked = {
            **_questions("thing", jnp.split(things[..., :-2], np.cumsum(counts)[:-1], axis=-1), batch.looks),
            **_questions("token", jnp.split(seen[..., : sum(counts)], np.cumsum(counts)[:-1], axis=-1), batch.shown),
        }
        rows, columns = jnp.split(seen[..., sum(counts) :], 2, axis=-1)
        asked |= {"token_row": _choose(rows, row), "token_column": _choose(columns, column)}
        there = (batch.looks[..., 0] >= 0).astype(jnp.float32)
        off = jnp.sum(jnp.abs(things[..., -2:] - batch.centres), axis=-1)
        centre = jnp.sum(off * there) / jnp.sum(there)
        total = sum((loss for loss, _ in asked.values()), CENTRE_WEIGHT * centre)
        return total, {"loss": total, "thing_centre": centre} | {name: right for name, (_, right) in asked.items()}


class Named(nnx.Module):
    """SAM 2 with what asks it."""

    def __init__(self, config: UniPixelConfig, rngs: nnx.Rngs) -> None:
        self.sam2 = Sam2(config.sam2, rngs)
        self.words = nnx.List([declare(rngs, (len(choices), config.sam2.d_model), (None, None), unit_normal) for choices in LOOKS])
        self.config = config

    def loss(self, batch: Targets, weights: MaskLossWeights) -> tuple[jax.Array, MaskLosses]:
        """The mask loss, and its parts."""
        unstack_layers(*self.sam2.hiera.stages)
        prompts = jnp.sum(jnp.stack([table[...][jnp.maximum(batch.looks[..., i], 0)] for i, table in enumerate(self.words)]), axis=0)
        count = batch.frames.shape[0]
        clips = TrainClips(batch.frames[:, None], jnp.ones(count, jnp.int32), batch.looks[..., 0], batch.masks[:, None], batch.valid)
        losses = clip_losses(self, prompts[:, :, None], clips, batch.frames.dtype, weights, "none")
        return losses.total(weights), losses


def teach(config: UniPixelConfig, run_dir: Path, sight: Lesson, segmenting: Lesson, weights: MaskLossWeights, seed: int = 0) -> dict[KeyPath, np.ndarray]:
    """Teach both towers; their numbers go to ``vision`` and ``sam2`` in ``run_dir``.

    Args:
        config: sizes of the model.
        run_dir: for the numbers, as those of a run.
        sight: of the vision tower.
        segmenting: of SAM 2.
        weights: of the parts of the mask loss.
        seed: of the weights at the start, and of the pictures.

    Returns:
        The weights of both towers, by the model's paths.
    """
    tables = _tables(config)
    looked = _teach(
        Sight(config, nnx.Rngs(seed)), sight, run_dir / "vision", seed, partial(_sights, config), lambda model, batch: model.loss(Sights(*batch), tables)
    )
    segmented = _teach(
        Named(config, nnx.Rngs(seed)), segmenting, run_dir / "sam2", seed, partial(_targets, config), lambda model, batch: _parts(model, batch, weights)
    )
    found: dict[KeyPath, np.ndarray] = {}
    for name, tower in {"vision": looked.vision, "sam2": segmented.sam2}.items():
        found |= {(name, *path): np.asarray(leaf.get_value()) for path, leaf in nnx.to_flat_state(nnx.state(tower))}  # type: ignore[arg-type]
    return found


def _parts(model: Named, batch: Sequence[jax.Array], weights: MaskLossWeights) -> tuple[jax.Array, dict[str, jax.Array]]:
    total, losses = model.loss(Targets(*batch), weights)
    return total, {"loss": total} | {field.name: getattr(losses, field.name) for field in dataclasses.fields(losses)}


def _teach(
    model: M,
    lesson: Lesson,
    run_dir: Path,
    seed: int,
    draw: Callable[[Annotation, np.random.Generator], Sequence[NDArray[Any]]],
    loss: Callable[[M, Any], tuple[jax.Array, dict[str, jax.Array]]],
) -> M:
    """The model after a lesson."""
    parts: tuple[Any, ...] = nnx.split(model, trained(("all",)), ...)
    graph, own, rest = parts
    optimizer = make_optimizer(lesson.optim, groups(own), lesson.steps)

    @jax.jit
    def step(own: nnx.State, state: optax.OptState, batch: Any) -> tuple[nnx.State, optax.OptState, dict[str, jax.Array]]:
        grads, numbers = jax.grad(lambda own: loss(nnx.merge(graph, own, rest), batch), has_aux=True)(own)
        changes, state = optimizer.update(grads, state, own)
        return optax.apply_updates(own, changes), state, numbers

    state, recent = optimizer.init(own), []
    run_dir.mkdir(parents=True, exist_ok=True)
    mixture = open_mixture("shapes_image", run_dir, lesson.batch_size, seed)
    loader: Loader[Any, Any] = Loader(mixture, draw, _together, LoaderOptions(workers=0, threads=1, buffer=32))
    with loader, Watch(run_dir, {}, lesson.steps, 0) as watch:
        for number in range(1, lesson.steps + 1):
            own, state, numbers = step(own, state, next(loader).arrays)
            recent.append(numbers)
            watch.advance(number)
            if number % LOG_EVERY == 0 or number == lesson.steps:
                watch.write(number, jax.tree.map(lambda *a: float(np.mean(np.stack(a))), *recent))
                recent = []
    return nnx.merge(graph, own, rest)


def _choose(logits: jax.Array, right: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean cross-entropy and share of right answers over those that are not -1."""
    counts = (right >= 0).astype(jnp.float32)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(right, 0))
    hit = (jnp.argmax(logits, axis=-1) == right).astype(jnp.float32)
    return jnp.sum(loss * counts) / jnp.maximum(jnp.sum(counts), 1.0), jnp.sum(hit * counts) / jnp.maximum(jnp.sum(counts), 1.0)


def _questions(what: str, logits: Sequence[jax.Array], looks: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
    return {f"{what}_{name}": _choose(own, looks[..., i]) for i, (name, own) in enumerate(zip(("size", "colour", "shape"), logits, strict=True))}


def _together(samples: Sequence[tuple[NDArray[Any], ...]]) -> tuple[NDArray[Any], ...]:
    return tuple(np.stack(arrays) for arrays in zip(*samples, strict=True))


def _sights(config: UniPixelConfig, annotation: Annotation, rng: np.random.Generator) -> tuple[NDArray[Any], ...]:
    """The arrays of ``Sights`` for one picture, or for two frames of a clip, which the tower reads together."""
    scene = draw_scene(rng, int(rng.integers(1, 3)))
    count, side = len(scene.things), _side(config)
    patches, grid = patchify(language_frames(scene.frames, len(scene.frames), config.vision.merge_size), config.vision)
    looks = _looks(scene)
    cover = scene.masks[:, 0].reshape(count, side, SIDE // side, side, SIDE // side).mean(axis=(2, 4)).reshape(count, -1)
    shown = np.where(cover.max(axis=0)[:, None] >= SHOWN, looks[cover.argmax(axis=0)], -1).astype(np.int32)
    under = memory_grid(scene.masks, grid, config.vision)[0].reshape(count, -1).astype(np.float32)
    return patches, _filled(under, 0), _filled(looks, -1), _filled((scene.centres / SIDE).astype(np.float32), 0), shown


def _targets(config: UniPixelConfig, annotation: Annotation, rng: np.random.Generator) -> tuple[NDArray[Any], ...]:
    """The arrays of ``Targets`` for one picture."""
    scene = draw_scene(rng)
    frames = square_frames(scene.frames, config.sam2.image_size)
    return frames[0], _filled(_looks(scene), -1), _filled(scene.masks[:, 0], False), _filled(np.ones(len(scene.things), bool), False)


def _looks(scene: Scene) -> NDArray[np.int32]:
    return np.array([[choices.index(word) for choices, word in zip(LOOKS, (t.size, t.colour, t.shape), strict=True)] for t in scene.things], np.int32)


def _filled(array: NDArray[Any], value: Any) -> NDArray[Any]:
    """With ``THINGS`` rows."""
    return np.concatenate([array, np.full((THINGS - len(array), *array.shape[1:]), value, array.dtype)])


def _side(config: UniPixelConfig) -> int:
    """Of the grid of tokens that a scene becomes."""
    return int(language_frames(np.zeros((1, SIDE, SIDE, 3), np.uint8), 1, config.vision.merge_size).shape[1] // config.vision.merge_size)


def _tables(config: UniPixelConfig) -> VisionTables:
    """Of one picture."""
    side = _side(config) * config.vision.spatial_merge_size
    sizes = Ladders(patches=Ladder("patches", side**2, 1.0, side**2), windows=Ladder("windows", 1, 1.0, side**2), grid_frames=Ladder("frames", 1, 1.0, 1))
    index = build_vision_index([[1, side, side]], config.vision, sizes)
    return VisionTables(**{field.name: jnp.asarray(getattr(index, field.name)) for field in dataclasses.fields(VisionTables)})

