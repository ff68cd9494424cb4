"""The curriculum of the small model: the targets of its stages are right, its parts learn, and a stage is run once."""

import contextlib
import dataclasses
import json
import sys
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from unipixel_jax.data.annotation import Annotation
from unipixel_jax.data.synthetic.scene import COLOURS, RADII, SHAPES, SIDE, draw_scene
from unipixel_jax.errors import UserError
from unipixel_jax.infer.loading import EMBEDDED
from unipixel_jax.models.sam2.position import fourier
from unipixel_jax.models.unipixel import UniPixelModel, abstract_model
from unipixel_jax.processing.tokenizer import Tokenizer
from unipixel_jax.synthetic import curriculum, trainer
from unipixel_jax.synthetic.appearance import ATTRIBUTES, MAX_THINGS, prompt_code
from unipixel_jax.synthetic.language_stage import COMPARISON, OCCLUSION, VERDICT_WEIGHT, DrawLanguageSample, collate_language, language_loss, verdict_weights
from unipixel_jax.synthetic.recipe import LOSSES, SHAPES_MODEL, conversations, from_scratch
from unipixel_jax.synthetic.segmentation_stage import draw_targets
from unipixel_jax.synthetic.trainer import StageConfig, train_stage
from unipixel_jax.synthetic.vision_stage import MIN_FIRST, MIN_SECOND, VisionProbe, collate_vision, draw_vision_sample, grid_side, vision_tables

SMALL = dataclasses.replace(
    SHAPES_MODEL,
    vision=dataclasses.replace(SHAPES_MODEL.vision, depth=2, hidden_size=32, intermediate_size=32, fullatt_block_indexes=(1,)),
    text=dataclasses.replace(SHAPES_MODEL.text, num_hidden_layers=1),
    sam2=dataclasses.replace(SHAPES_MODEL.sam2, embed_dim=8, d_model=64, mem_dim=16, memory_attention_ffn_dim=32),
)
DATA = conversations("shapes_image")
ANYTHING = Annotation("shapes_image", "shapes_image", "shapes", None, (), "0")


def test_a_token_shows_the_thing_that_covers_it():
    side = grid_side(SHAPES_MODEL)
    cell, glimpses = SIDE // side, 0
    for seed in range(10):
        drawn = draw_vision_sample(SHAPES_MODEL, ANYTHING, np.random.default_rng(seed))
        rng = np.random.default_rng(seed)
        scene = draw_scene(rng, int(rng.integers(1, 3)))
        count = len(scene.things)
        assert drawn["patches"].shape[0] == 4 * side**2 and drawn["under"].shape == (MAX_THINGS, side**2)
        for number, (thing, known) in enumerate(zip(scene.things, drawn["things"], strict=False)):
            assert [tuple(RADII)[known[0]], tuple(COLOURS)[known[1]], SHAPES[known[2]]] == [thing.size, thing.colour, thing.shape]
            assert np.array_equal(known[3:], (thing.centres[0][::-1] // cell).astype(int))
            row, column = drawn["pointed"][number] * cell
            near = np.zeros((SIDE, SIDE), bool)
            near[max(row - cell, 0) : row + 2 * cell, max(column - cell, 0) : column + 2 * cell] = True
            assert np.any(near & scene.masks[number].any(axis=0)), "a reference lies on its thing"
        assert np.all(drawn["things"][count:] == -1) and np.all(drawn["pointed"][count:] == -1) and np.all(drawn["under"][count:] == side**2)
        for token in range(side**2):
            row, column = np.array(divmod(token, side)) * cell
            part = scene.masks[:, 0, row : row + cell, column : column + cell].mean(axis=(1, 2))
            *_, second, first = np.argsort(part, kind="stable")
            wanted = drawn["things"][first][:3] if part[first] >= MIN_FIRST else [-1, -1, -1]
            assert np.array_equal(drawn["shown"][token, :5], [*wanted, *divmod(token, side)])
            colour = drawn["things"][second][1] if part[second] >= MIN_SECOND else len(COLOURS)
            assert drawn["shown"][token, 5] == (colour if part[first] >= MIN_FIRST else -1)
            glimpses += part[first] >= MIN_FIRST and part[second] >= MIN_SECOND
    assert glimpses > 20


def test_a_stage_about_pairs_has_one_in_every_scene():
    tokenizer = Tokenizer.from_directory(EMBEDDED)
    asked = 0
    for seed in range(20):
        sample, _, _ = DrawLanguageSample(tokenizer, SHAPES_MODEL, DATA, OCCLUSION)(ANYTHING, np.random.default_rng(seed))
        asked += "behind" in tokenizer.decode(sample.conversation.input_ids.tolist())
    assert asked >= 19, "four in five of four questions, of which a scene without a pair allows none"


def test_a_code_adds_up_words_and_a_place():
    matrix = jax.random.normal(jax.random.key(0), (2, 32))
    at, nowhere, wordless = jnp.array([0.25, 0.75]), jnp.array([-1.0, -1.0]), jnp.array([-1, -1, -1])
    np.testing.assert_allclose(prompt_code(wordless, at, matrix), fourier(at, matrix), rtol=1e-6)
    assert not np.any(prompt_code(wordless, nowhere, matrix))
    words = {prompt_code(jnp.array(look), nowhere, matrix).tobytes() for look in np.ndindex(*map(len, ATTRIBUTES))}
    assert len(words) == np.prod([len(choices) for choices in ATTRIBUTES])
    look = jnp.array([1, 4, 2])
    np.testing.assert_allclose(prompt_code(look, at, matrix), prompt_code(look, nowhere, matrix) + fourier(at, matrix), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("wordless", "frames"), [(0.0, 1), (1.0, 1), (0.0, 3)])
def test_a_prompt_says_the_place_of_its_thing(wordless, frames):
    off = []
    for seed in range(20):
        pixels, look, at, masks, valid = draw_targets(SHAPES_MODEL, frames, wordless, ANYTHING, np.random.default_rng(seed))
        scene = draw_scene(np.random.default_rng(seed), frames)
        count = len(scene.things)
        assert pixels.shape == (frames, SIDE, SIDE, 3) and np.array_equal(masks[:, :count], scene.masks.swapaxes(0, 1)) and valid.sum() == count
        assert np.all(look[:count] == -1) if wordless else np.all(look[:count] >= 0)
        there = at[:count, 0] >= 0
        off += (at[:count] * SIDE - scene.centres)[there].tolist()
    assert np.abs(np.mean(off, axis=0)).max() < 2 and 3 < np.std(off) < 10


def test_the_code_stands_where_the_name_was_said():
    tokenizer = Tokenizer.from_directory(EMBEDDED)
    samples = [DrawLanguageSample(tokenizer, SHAPES_MODEL, DATA)(ANYTHING, np.random.default_rng(seed)) for seed in range(16)]
    batch = collate_language(SHAPES_MODEL, tokenizer.pad_id, DATA.buckets, {}, samples)
    named = 0
    for ids, at, look in zip(np.asarray(batch.rows.inputs.input_ids)[:, 0], batch.at, batch.attributes, strict=True):
        assert np.sum(ids == SHAPES_MODEL.seg_token_id) == np.sum(look[:, 0] >= 0)
        for position, words in zip(at[look[:, 0] >= 0], look[look[:, 0] >= 0], strict=True):
            assert ids[position + 1] == SHAPES_MODEL.seg_token_id
            said = tokenizer.decode(ids[: position + 1].tolist())
            name = " ".join(choices[number] for choices, number in zip(ATTRIBUTES, words, strict=True))
            assert said.endswith((f"It is the {name}", "It is this object", "[0] ", "[1] ")), said[-60:]
            named += said.endswith(name)
    assert named >= 5


@pytest.mark.slow
def test_the_vision_tower_learns(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "LOG_EVERY", 10)
    tables = vision_tables(SMALL)
    model = VisionProbe(SMALL, nnx.Rngs(1))
    stage = StageConfig(30, 8, from_scratch(6e-3))
    draw = partial(draw_vision_sample, SMALL)
    train_stage(model, lambda path, _: path[0] not in ("sam2", "text"), stage, tmp_path, 1, draw, collate_vision, lambda m, b: m.loss(tables, b))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 30]
    assert lines[2]["loss"] < 0.85 * lines[0]["loss"], lines
    assert lines[2]["token_colour"] > lines[0]["token_colour"]


def test_a_verdict_counts_more():
    tokenizer = Tokenizer.from_directory(EMBEDDED)
    samples, counts = [], verdict_weights(tokenizer)
    for seed in range(16):
        with contextlib.suppress(UserError):  # a few are too long
            samples.append(DrawLanguageSample(tokenizer, SMALL, DATA, COMPARISON)(ANYTHING, np.random.default_rng(seed)))
    plain, counted = (collate_language(SMALL, tokenizer.pad_id, DATA.buckets, c, samples).rows for c in ({}, counts))
    learned, labels = plain.label_weights > 0, np.asarray(plain.labels)
    ratio, verdict = counted.label_weights / np.where(learned, plain.label_weights, 1.0), learned & np.isin(labels, list(counts))
    before = labels[np.roll(verdict, -1, axis=-1)]
    assert sum(tokenizer.decode([token]) == ":" for token in before.tolist()) >= 3
    assert {tokenizer.decode([token]) for token in before.tolist()} <= {":", "]"}
    np.testing.assert_allclose(ratio[verdict], VERDICT_WEIGHT, rtol=1e-6)
    np.testing.assert_allclose(ratio[learned & ~verdict], 1.0, rtol=1e-6)


def test_silence_costs_the_whole_code():
    tokenizer = Tokenizer.from_directory(EMBEDDED)
    samples = [DrawLanguageSample(tokenizer, SMALL, DATA)(ANYTHING, np.random.default_rng(seed)) for seed in range(8)]
    model = UniPixelModel(SMALL, nnx.Rngs(0))
    model.seg_head.mlp.fc2.weight.set_value(jnp.zeros_like(model.seg_head.mlp.fc2.weight[...]))
    _, numbers = language_loss(model, jax.tree.map(jnp.asarray, collate_language(SMALL, tokenizer.pad_id, DATA.buckets, {}, samples)))
    np.testing.assert_allclose(numbers["code"], 1.0, rtol=1e-5)
    assert numbers["language"] > 1


def test_one_side_that_fails_stops_the_other():
    start = time.monotonic()
    with pytest.raises(UserError, match="a stage ended with an error"):
        curriculum._side_by_side(partial(time.sleep, 600), partial(sys.exit, 3))
    assert time.monotonic() - start < 300
    curriculum._side_by_side(partial(time.sleep, 0), partial(time.sleep, 0))


@pytest.mark.slow
def test_a_stage_is_run_once(tmp_path):
    stage = StageConfig(2, 8, from_scratch(1e-3))
    short = curriculum.Curriculum(*[stage] * 8)
    tokenizer = Tokenizer.from_directory(EMBEDDED)
    trained = curriculum.run_curriculum(short, SMALL, tokenizer, DATA, LOSSES, tmp_path, seed=1)
    wanted = {path: leaf.get_value().shape for path, leaf in nnx.to_flat_state(nnx.state(abstract_model(SMALL)))}
    assert {path: array.shape for path, array in trained.items()} == wanted
    assert all(np.isfinite(array).all() for array in trained.values())
    (tmp_path / "comparison" / "weights.npz").unlink()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/weights.npz")}
    again = curriculum.run_curriculum(short, SMALL, tokenizer, DATA, LOSSES, tmp_path, seed=1)
    assert len(before) == 7 and all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert all(np.array_equal(again[path], array) for path, array in trained.items())
