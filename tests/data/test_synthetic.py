"""Drawn scenes: masks are the visible parts, questions have one answer, and conversations fit their objects."""

from dataclasses import replace

import numpy as np
import pytest

from unipixel_jax.data.annotation import DrawOptions
from unipixel_jax.data.assemble import prepare
from unipixel_jax.data.batch import collate
from unipixel_jax.data.draw import draw
from unipixel_jax.data.sources import open_source
from unipixel_jax.data.synthetic.language import about, at_side, find, full_name, names
from unipixel_jax.data.synthetic.scene import COLOURS, SHAPES, SIDE, VISIBLE, draw_scene
from unipixel_jax.errors import UserError
from unipixel_jax.infer.loading import EMBEDDED
from unipixel_jax.processing.tokenizer import MEM_TOKEN, REF_TOKEN, SEG_TOKEN, Tokenizer
from unipixel_jax.synthetic.recipe import SHAPES_MODEL

OPTIONS = DrawOptions(sample_frames=(3, 3), max_turns=4, image_size=SIDE)


@pytest.fixture(scope="module")
def scenes():
    return [draw_scene(np.random.default_rng([9, number]), 1 + number % 3) for number in range(30)]


def test_masks_show_the_colour_of_their_thing(scenes):
    for scene in scenes:
        for thing, masks in zip(scene.things, scene.masks, strict=True):
            for frame, mask in zip(scene.frames, masks, strict=True):
                assert np.abs(frame[mask].mean(axis=0) - COLOURS[thing.colour]).max() < 50


def test_visible_parts_do_not_overlap_and_are_large_enough(scenes):
    for scene in scenes:
        assert scene.masks.sum(axis=0).max() == 1
        areas = scene.masks.sum(axis=(2, 3))
        assert areas.min() > VISIBLE * 100


def test_names_point_to_one_thing(scenes):
    for scene in scenes:
        looks = [full_name(scene, i) for i in range(len(scene.things))]
        assert len(set(looks)) == len(looks)
        for thing in range(len(scene.things)):
            for name in names(scene, thing):
                assert [set(name.split()) <= set(look.split()) for look in looks].count(True) == 1


def test_leftmost_is_leftmost(scenes):
    found = [(scene, at_side(scene, "leftmost", None)) for scene in scenes]
    assert any(thing is not None for _, thing in found)
    assert all(scene.centres[thing, 0] == scene.centres[:, 0].min() for scene, thing in found if thing is not None)


def test_answers_are_right(scenes):
    rng = np.random.default_rng(0)
    for scene in scenes * 5:
        question = find(scene, rng)
        (thing,) = question.segmented
        assert question.answer == f"It is the {full_name(scene, thing)}{SEG_TOKEN}."
        assert question.kind != "look" or any(f"the {name}" in question.text for name in names(scene, thing))
        if question.kind == "behind":
            assert scene.covered[thing].max() > 0
        pair = (0, 1)
        asked = about(scene, pair, rng)
        if asked.kind == "left":
            left = int(np.argmin(scene.centres[list(pair), 0]))
            assert asked.answer == f"[{left}] is further left."
        if asked.kind in ("same_colour", "same_shape"):
            looks = [getattr(scene.things[i], asked.kind.removeprefix("same_")) for i in pair]
            words = asked.answer.replace(":", "").replace(",", "").replace(".", "").split()
            assert [word for word in words if word in (*COLOURS, *SHAPES)] == looks
            assert words[-1] == ("yes" if looks[0] == looks[1] else "no")


def test_things_are_alike_about_as_often_as_not():
    rng = np.random.default_rng(0)
    answers = [question.answer for _ in range(600) if (question := about(draw_scene(rng), (0, 1), rng)).kind.startswith("same_")]
    assert 0.35 < np.mean([answer.endswith("yes.") for answer in answers]) < 0.6, len(answers)


def test_every_question_is_asked(scenes):
    rng = np.random.default_rng(0)
    kinds = {question.kind for scene in scenes * 5 for question in (find(scene, rng), about(scene, (0, 1), rng))}
    assert kinds >= {"look", "side", "behind", "left", "larger", "same_colour", "same_shape", "what", "colour", "shape"}


@pytest.mark.parametrize("name", ["shapes_image", "shapes_clip", "shapes_words"])
def test_conversations_fit_what_they_hold(name):
    source = open_source(name, "nowhere")
    for number in range(20):
        example = draw(source[number], OPTIONS, np.random.default_rng(number))
        answers = "".join(m["content"] for m in example.messages if m["role"] == "assistant")
        words = answers + "".join(m["content"] if isinstance(m["content"], str) else m["content"][1]["text"] for m in example.messages if m["role"] == "user")
        assert words.count(REF_TOKEN) == len(example.references)
        assert name == "shapes_clip" or words.count(MEM_TOKEN) == (0 if example.memory is None else len(example.memory))
        assert name != "shapes_clip" or len(example.messages) == 4
        assert len(example.clip.frames) == (3 if name == "shapes_clip" else 1)
        assert example.masks is None if name == "shapes_words" else answers.count(SEG_TOKEN) == len(example.masks)


def test_each_turn_lists_what_it_remembers_and_its_answer_is_about_that():
    """The samples that teach only words have the mask of the described thing as the memory of each description."""
    source, described = open_source("shapes_words", "nowhere"), 0
    for number in range(40):
        example = draw(source[number], OPTIONS, np.random.default_rng(number))
        at = 0
        for asked, told in zip(example.messages[::2], example.messages[1::2], strict=True):
            text = asked["content"] if isinstance(asked["content"], str) else asked["content"][1]["text"]
            listed, at = text.count(MEM_TOKEN), at + text.count(MEM_TOKEN)
            if listed == 1 and told["content"].startswith("It is a "):
                colour = told["content"].split()[4]
                shown = example.clip.frames[0][example.memory[at - 1, 0]].mean(axis=0)
                assert np.abs(shown - COLOURS[colour]).max() < 50
                described += 1
    assert described > 20


def test_same_numbers_same_scene():
    first, second = (draw_scene(np.random.default_rng(4)) for _ in range(2))
    assert np.array_equal(first.frames, second.frames)


def test_other_size_is_refused():
    with pytest.raises(UserError, match="shapes are drawn 128 pixels wide, the model's SAM reads 768"):
        draw(open_source("shapes_image", ".")[0], DrawOptions(image_size=768), np.random.default_rng(0))


def test_rows_with_more_answers_than_are_trained_on_fill_one_batch():
    """Conversations of many masks, of which 3 at most are drawn, lie in arrays of 3 or 4 objects, at the positions of those drawn."""
    config, tokenizer = replace(SHAPES_MODEL, sample_objects=3), Tokenizer.from_directory(EMBEDDED)
    source, samples = open_source("shapes_image", "nowhere"), []
    for number in range(12):
        rng = np.random.default_rng(number)
        samples.append(prepare(draw(source[number], replace(OPTIONS, max_turns=4 + number % 3), rng), tokenizer, config, rng))
    counts = [int(np.sum(sample.conversation.input_ids == config.seg_token_id)) for sample in samples]
    assert max(counts) > 4
    batch = collate(samples, [[i] for i in range(12)], 12, config, tokenizer.pad_id)
    assert batch.clips.valid.sum() == sum(min(count, 3) for count in counts) and batch.clips.masks.shape[3] <= 4
    for row in range(12):
        at = batch.inputs.seg_positions[row, 0, batch.clips.valid[row, 0]]
        assert np.all(batch.inputs.input_ids[row, 0, at + 1] == config.seg_token_id)
