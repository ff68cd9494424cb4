"""The first stage of the small model: what is asked of the towers is right, and they come out as the model has them."""

import dataclasses
import json
from functools import partial

import numpy as np
import pytest
from flax import nnx

from unipixel_jax.data.shapes.scene import COLOURS, RADII, SHAPES, SIDE, draw_scene
from unipixel_jax.losses.mask import MaskLossWeights
from unipixel_jax.models.unipixel import abstract_model
from unipixel_jax.train import towers
from unipixel_jax.train.shapes import SHAPES_MODEL, from_nothing
from unipixel_jax.train.towers import Lesson, Sight, Sights, teach

SMALL = dataclasses.replace(
    SHAPES_MODEL,
    vision=dataclasses.replace(SHAPES_MODEL.vision, depth=2, hidden_size=32, intermediate_size=32, fullatt_block_indexes=(1,)),
    sam2=dataclasses.replace(SHAPES_MODEL.sam2, embed_dim=8, d_model=64, mem_dim=16, memory_attention_ffn_dim=32),
)


def test_a_token_shows_the_thing_that_covers_it():
    side = towers._side(SHAPES_MODEL)
    for seed in range(10):
        patches, under, looks, centres, shown = towers._sights(SHAPES_MODEL, None, np.random.default_rng(seed))
        rng = np.random.default_rng(seed)
        scene = draw_scene(rng, int(rng.integers(1, 3)))
        count = len(scene.things)
        assert patches.shape[0] == 4 * side**2 and under.shape == (towers.THINGS, side**2)
        for thing, look, centre in zip(scene.things, looks, centres, strict=False):
            assert [tuple(RADII)[look[0]], tuple(COLOURS)[look[1]], SHAPES[look[2]]] == [thing.size, thing.colour, thing.shape]
            np.testing.assert_allclose(centre, thing.centres[0] / SIDE, rtol=1e-6)
        assert np.all(looks[count:] == -1) and not under[count:].any()
        cell = SIDE // side
        for token in range(side**2):
            row, column = np.array(divmod(token, side)) * cell
            part = scene.masks[:, 0, row : row + cell, column : column + cell].mean(axis=(1, 2))
            if part.max() >= towers.SHOWN:
                assert np.array_equal(shown[token], looks[part.argmax()])
            else:
                assert np.all(shown[token] == -1)


def test_the_vision_tower_learns(tmp_path, monkeypatch):
    monkeypatch.setattr(towers, "LOG_EVERY", 10)
    tables = towers._tables(SMALL)
    draw = partial(towers._sights, SMALL)
    towers._teach(Sight(SMALL, nnx.Rngs(1)), Lesson(30, 8, from_nothing(6e-3)), tmp_path, 1, draw, lambda model, batch: model.loss(Sights(*batch), tables))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 30]
    assert lines[2]["loss"] < 0.85 * lines[0]["loss"]
    assert lines[2]["token_colour"] > lines[0]["token_colour"]


@pytest.mark.slow
def test_both_towers_come_out_whole(tmp_path):
    lesson = Lesson(2, 2, from_nothing(1e-3))
    arrays = teach(SMALL, tmp_path, lesson, lesson, MaskLossWeights(mask=5.0), seed=1)
    wanted = {path: leaf.get_value().shape for path, leaf in nnx.to_flat_state(nnx.state(abstract_model(SMALL))) if path[0] in ("vision", "sam2")}
    assert {path: array.shape for path, array in arrays.items()} == wanted
    assert all(np.isfinite(array).all() for array in arrays.values())
