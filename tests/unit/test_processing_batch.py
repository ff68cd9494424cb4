"""Whole prompts as padded arrays."""

import dataclasses

import numpy as np
import pytest
from processing_cases import HERE, recorded, tokenizer

from unipixel_jax.config import preset
from unipixel_jax.core.buckets import BUCKETS, Buckets
from unipixel_jax.errors import UserError
from unipixel_jax.processing.batch import collate, prepare_conversation, prepare_media, user_turn
from unipixel_jax.processing.media import read_media
from unipixel_jax.processing.memory import memory_grid, memory_prefix
from unipixel_jax.processing.prompts import Box, Point

CONFIG = preset("tiny")
E2E = [
    ("e2e_image", "photo.png", 16, "Please segment the tallest giraffe."),
    ("e2e_video", "clip", 16, "Where is the nearest sheep? It is <|seg|>, please provide the segmentation mask."),
    ("e2e_video_sampled", "clip", 4, "Segment the object <|seg|> now."),
]


def media_of(media, frames=16, segment=False):
    return prepare_media(read_media(HERE / "media" / media, frames), CONFIG, sample_frames=frames, segment=segment)


def prompt_of(text, image, **options):
    return prepare_conversation(user_turn(text), image, tokenizer(), CONFIG, **options)


def batch_of(*prompts, buckets=BUCKETS):
    return collate(prompts, CONFIG, tokenizer().pad_id, buckets)


@pytest.mark.parametrize(("case", "media", "frames", "text"), E2E)
def test_prompts_match_the_reference(case, media, frames, text):
    prompt = prompt_of(text, media_of(media, frames))
    np.testing.assert_array_equal(prompt.input_ids, recorded()[f"{case}.input_ids"])


def test_a_batch_holds_what_its_prompts_hold_alone():
    prompts = [prompt_of(text, media_of(media, frames)) for _, media, frames, text in E2E]
    together = batch_of(*prompts)
    assert together.input_ids.shape == (3, BUCKETS.tokens.size(616)) and len(together.patches) == BUCKETS.patches.size(660 + 2160 + 1080)
    tokens_before, taken, none = 0, set(), together.vision.windows.size // 4
    for row, prompt in enumerate(prompts):
        alone = batch_of(prompt)
        used, tokens = len(prompt.input_ids), len(prompt.media.patches) // 4
        a, b = slice(-used, None), slice(-used, None)
        np.testing.assert_array_equal(together.input_ids[row, a], alone.input_ids[0, b])
        np.testing.assert_array_equal(together.position_ids[:, row, a], alone.position_ids[:, 0, b])
        assert together.lengths[row] == used
        assert together.rope_deltas[row] + together.input_ids.shape[1] == alone.rope_deltas[0] + alone.input_ids.shape[1]
        is_video = alone.input_ids[0, b] == CONFIG.video_token_id
        slots = together.vision_slots[row, a][is_video]
        np.testing.assert_array_equal(together.patches.reshape(none, -1)[slots], prompt.media.patches.reshape(tokens, -1))
        taken.update(slots.tolist())
        tokens_before += tokens
    assert len(taken) == tokens_before, "no two tokens share a place"
    assert np.all(together.vision_slots[together.input_ids != CONFIG.video_token_id] == none)


def test_rows_are_padded_on_the_left_and_the_batch_with_harmless_rows():
    buckets = dataclasses.replace(BUCKETS, batch=Buckets("prompts", 4, 2.0, 8))
    batch = batch_of(prompt_of("Hi", media_of("photo.png")), buckets=buckets)
    assert batch.lengths.tolist()[1:] == [1, 1, 1]
    assert np.all(batch.input_ids[0, : -batch.lengths[0]] == tokenizer().pad_id)
    assert np.all(batch.vision_slots[1:] == batch.vision.windows.size // 4)
    assert np.all(batch.seg_positions == batch.input_ids.shape[1])


def test_prompt_segments_point_at_the_position_before():
    batch = batch_of(prompt_of("<|seg|> and <|seg|>", media_of("photo.png")), prompt_of("none", media_of("photo.png")))
    found = batch.seg_positions[0]
    assert batch.seg_positions.shape == (2, 2)
    assert np.all(batch.input_ids[0, found + 1] == CONFIG.seg_token_id) and found[0] < found[1]
    assert np.all(batch.seg_positions[1] == batch.input_ids.shape[1])


def test_references_reach_their_tokens():
    image = media_of("clip", 4)
    first = prompt_of("Compare <|ref|> with <|ref|>.", image, references=[Point(10, 20, 3), Box(0, 0, 176, 104, 1)])
    second = prompt_of("Describe <|ref|>.", image, references=[Point(1, 1)])
    batch = batch_of(first, second)
    slots = batch.reference_slots[batch.input_ids == CONFIG.ref_token_id]
    assert slots.tolist() == [0, 1, 2]
    assert np.sum(batch.reference_slots < len(batch.references.frames)) == 3
    assert batch.references.is_box.tolist()[:3] == [False, True, False]
    assert batch.references.frames.tolist()[:3] == [3, 1, 0] and np.all(batch.references.spans[:3] == 3)
    np.testing.assert_allclose(batch.references.coords[1, :2], [[0, 0], [64, 64]])


def test_memories_reach_their_tokens():
    image = media_of("clip", 4)
    masks = np.zeros((2, 4, 208, 352), bool)
    masks[0, :, :50, :60] = masks[1, 3, 100:, 200:] = True
    grid = memory_grid(masks, image.grid_thw, CONFIG.vision)
    batch = batch_of(prompt_of(memory_prefix(grid, 4) + "What is [0] doing?", image, memory=grid))
    slots = batch.memory_slots[batch.input_ids == CONFIG.mem_token_id]
    assert slots.tolist() == [0, 1, 2]
    none = batch.vision.windows.size // 4
    sizes = (batch.memory_rows < none).sum(axis=1)
    assert sizes[:3].tolist() == [grid[0, 0].sum(), grid[1, 0].sum(), grid[1, 1].sum()] and not sizes[3:].any()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("  ", "prompt is empty"),
        ("Describe <|ref|>.", r"1 <\|ref\|> for 0 points"),
        ("Describe <|mem|>.", r"1 <\|mem\|> for 0 memories"),
        ("Look at <|video_pad|>.", r"2 <\|video_pad\|> or <\|image_pad\|> for 1 clips"),
    ],
)
def test_prompts_that_do_not_fit(text, message):
    with pytest.raises(UserError, match=message):
        prompt_of(text, media_of("photo.png"))


def test_an_answer_may_be_begun_or_given():
    image = media_of("photo.png")
    begun = prompt_of("Which?", image, answer_start="The best option is (")
    assert tokenizer().decode(begun.input_ids).endswith("<|im_start|>assistant\nThe best option is (")
    given = prepare_conversation([*user_turn("Where?"), {"role": "assistant", "content": "[0] <|seg|>"}], image, tokenizer(), CONFIG)
    assert tokenizer().decode(given.input_ids).rstrip("\n").endswith("<|im_start|>assistant\n[0] <|seg|><|im_end|>")


def test_frames_for_sam():
    image = media_of("clip", 16, segment=True)
    assert image.frames.shape == (7, 128, 128, 3) and image.frames.dtype == np.float32 and image.frame_size == (208, 352)


def test_a_prompt_that_is_too_long_is_refused():
    buckets = dataclasses.replace(BUCKETS, tokens=Buckets("prompt tokens", 64, 2.0, 128))
    with pytest.raises(UserError, match=r"223 prompt tokens, expected 0 to 128"):
        batch_of(prompt_of(E2E[0][3], media_of("photo.png")), buckets=buckets)
