"""The public API on a tiny random model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unipixel_jax import Box, Mask, Point
from unipixel_jax.errors import UserError
from unipixel_jax.infer.generate import Sampling, generate
from unipixel_jax.processing import batch
from unipixel_jax.processing.media import read_media


def test_segments_every_seg_token_of_the_prompt_in_a_photo(model, photo):
    prediction = model.segment(photo, "The dog <|seg|> and the cat <|seg|>.", max_new_tokens=4)
    assert len(prediction.tokens) <= 4
    from_prompt = [item for item in prediction.objects if item.span is None]
    assert len(from_prompt) == 2
    assert all(item.masks.shape == (1, 180, 240) and item.masks.dtype == bool for item in prediction.objects)
    assert all(0 <= score <= 1 for item in prediction.objects for score in item.scores)


def test_spans_point_at_the_seg_tokens_of_the_answer(model):
    text, spans = model._decode(np.array([model.config.seg_token_id, 40, 41, model.config.seg_token_id], np.int32))
    assert [text[a:b] for a, b in spans] == ["<|seg|>", "<|seg|>"]
    assert spans[0][0] == 0 and spans[1][1] == len(text)


def test_all_objects_of_a_clip_are_tracked_as_if_alone(model, clip):
    together = model.segment(clip, "a <|seg|> bb <|seg|>", max_new_tokens=1)
    first = model.segment(clip, "a <|seg|>", max_new_tokens=1)
    assert np.array_equal(together.objects[0].masks, first.objects[0].masks)
    assert not np.array_equal(together.objects[0].scores, together.objects[1].scores)


def test_references_reach_the_answer(model, photo):
    def hidden(reference):
        taken, image = model._prepare(photo, 16)
        prompt = batch.prepare_conversation(batch.user_turn("<|ref|> <|seg|>"), image, model.loaded.tokenizer, model.config, references=[reference])
        assert len(taken.frames) == 1
        return model._generate(prompt, 1)[0]

    here, there, box = hidden(Point(20, 30)), hidden(Point(200, 150)), hidden(Box(20, 30, 90, 80))
    assert not np.allclose(here, there) and not np.allclose(here, box)


def test_pixelqa_goes_through_two_turns_for_points_and_one_for_masks(model, clip):
    pointed = model.ask(clip, "What is <region> doing to <region>?", [Point(40, 50), Box(80, 20, 120, 90)], max_new_tokens=3)
    assert len(pointed.objects) >= 2
    mask = np.zeros((3, 120, 160), bool)
    mask[:2, 20:60, 30:70] = True
    masked = model.ask(clip, "What is <region>?", [Mask(mask)], max_new_tokens=3)
    assert np.array_equal(masked.objects[0].masks, mask)
    assert model.describe(clip, Mask(mask), max_new_tokens=3).objects[0].areas == [1600, 1600, 0]


def test_prompts_of_different_lengths_answer_in_a_batch_as_they_do_alone(model, photo, clip):
    texts = [(photo, "Where is it?"), (clip, "Please tell me about the large red thing <|seg|> on the left of the image, in many words.")]
    prompts = []
    for media, text in texts:
        image = batch.prepare_media(read_media(media, 16), model.config)
        prompts.append(batch.prepare_conversation(batch.user_turn(text), image, model.loaded.tokenizer, model.config))

    def run(some):
        inputs = batch.collate(some, model.config, model.loaded.tokenizer.pad_id)
        return generate(
            model.loaded.model, jax.device_put(inputs), jax.random.key(0),
            jnp.asarray(6, jnp.int32), new_token_slots=32, end_tokens=(), dtype=jnp.dtype("float32"),
        )

    together = run(prompts)
    for row, prompt in enumerate(prompts):
        alone = run([prompt])
        assert np.array_equal(together.tokens[row, :6], alone.tokens[0, :6])
        error = np.abs(np.asarray(together.hidden[row, :6]) - np.asarray(alone.hidden[0, :6])).max()
        assert error < 2e-5 * np.abs(np.asarray(alone.hidden[0, :6])).max()


def test_sampling_is_reproducible_and_top_k_of_one_is_greedy(model, photo):
    def tokens(sampling, seed=0):
        return dataclasses.replace(model, sampling=sampling, seed=seed).segment(photo, "Describe it.", max_new_tokens=6).tokens

    warm = Sampling(temperature=5.0, top_p=0.95)
    assert tokens(warm, 1) == tokens(warm, 1)
    assert tokens(warm, 1) != tokens(warm, 2)
    assert tokens(Sampling(temperature=5.0, top_k=1)) == tokens(Sampling())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m, p: m.segment(p, "  "), "prompt is empty"),
        (lambda m, p: m.segment(p, "x", sample_frames=0), "sample_frames is 0"),
        (lambda m, p: m.segment(p, "x", max_new_tokens=0), "max_new_tokens is 0"),
        (lambda m, p: m.segment(p, "<region>", [Point(999, 5)]), "outside the image"),
        (lambda m, p: m.segment(p, "<region> <region>", [Point(9, 5)]), "expected one each"),
        (lambda m, p: m.ask(p, "what?", []), "no references"),
        (lambda m, p: m.ask(p, "what?", [Point(1, 1), Mask(np.ones((180, 240), bool))]), "mix masks"),
        (lambda m, p: m.segment(p[:1], "x"), "factor of 200"),
        (lambda m, p: m.segment("no/such/file.png", "x"), "no/such/file.png"),
    ],
)
def test_bad_input_says_what_is_wrong(model, photo, call, words):
    with pytest.raises(UserError, match=words):
        call(model, photo)
