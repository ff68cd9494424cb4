import json
import re

import numpy as np
import pytest
from marked_samples import SIDE, assembled, drawn, first_question, text_of, write

from unipixel_jax.data.annotation import DrawOptions
from unipixel_jax.data.draw import draw
from unipixel_jax.data.prompts_regions import DESCRIBE_PROMPTS
from unipixel_jax.data.sources import open_source
from unipixel_jax.data.sources.base import Filters
from unipixel_jax.errors import UserError

COUNTS = {
    "videorefer_short_caption": 4,
    "videorefer_detailed_caption": 4,
    "videorefer_qa": 4,
    "inst_it_video_qa_raw": 9,
    "osprey_conversation": 2,
    "osprey_pos_neg": 2,
    "osprey_detail_description": 1,
}


@pytest.fixture(scope="module", params=COUNTS)
def source(request, tmp_path_factory):
    return write(request.param, tmp_path_factory.mktemp("data"))


def test_as_many_samples_as_can_be_used(source):
    assert len(source) == COUNTS[source.name]


@pytest.mark.parametrize("frames", [(64, 64), (3, 3), (1, 5)])
def test_the_prompt_lists_each_object_where_it_is_visible(source, frames):
    """The list is worked out from the masks again, and the arrays come about, which checks the tokens against the grid of the vision tower."""
    for annotation, example in drawn(source, DrawOptions(sample_frames=frames, image_size=SIDE), seed=sum(frames)):
        assert example.memory.dtype == bool and example.memory.shape[1:] == example.clip.frames.shape[:3]
        assert example.memory.any(axis=(1, 2, 3)).all() and example.masks is None and not example.references
        count = len(example.clip.frames)
        head, *rest = first_question(example).split("\n")
        assert head.startswith(f"Here is a video with {count} frames" if count > 1 else "Here is an image")
        ids = annotation.turns[0].ids
        for mask, line in zip(example.memory, rest, strict=False):
            number, listed = re.fullmatch(r"\[(\d+)\]: (.*)", line).groups()
            assert int(number) in (ids or range(16))
            starts = {f // 2 * 2 + 1 for f in np.flatnonzero(mask.any(axis=(1, 2)))}
            pieces = [f"<{s}>-<{s + 1}> <|mem|>" for s in sorted(starts)] if count > 1 else ["<|mem|>"]
            assert listed == " ".join(pieces)
        assert len(rest) == len(example.memory) + 1 and len(ids or (0,)) == len(example.memory)
        assert assembled(example).conversation.memory.shape[1] == len(example.memory)


def test_words_speak_of_objects_by_numbers(source):
    for annotation, example in drawn(source):
        text = text_of(example)
        assert "<region" not in text and "<object" not in text
        mentioned = set(map(int, re.findall(r"\[(\d+)\]", text)))
        listed = set(map(int, re.findall(r"^\[(\d+)\]: ", first_question(example), re.M)))
        assert mentioned == listed
        assert [m["role"] for m in example.messages] == ["user", "assistant"] * len(annotation.turns)


def test_broken_tags_are_repaired_or_left_out(tmp_path):
    talks = write("osprey_conversation", tmp_path)
    assert [(t.text, t.answer) for t in talks[0].turns] == [("What is [1]?", "[1] is a red disc."), ("And [2]?", "[2] is green.")]
    assert [(t.text, t.answer) for t in talks[1].turns] == [("Is [2] above [3]?", "No, [3] lies below.")]
    assert talks[0].turns[0].ids == (1, 2) and talks[1].turns[0].ids == (2, 3)
    described = write("osprey_detail_description", tmp_path)
    assert [(t.text, t.answer) for t in described[0].turns] == [
        ("[1]", "A red disc at the top."),
        ("[2]", "A green disc in the middle."),
        ("[3]", "A blue disc at the bottom."),
    ]


def test_numbers_of_inst_it_are_repaired(tmp_path):
    source = write("inst_it_video_qa_raw", tmp_path)
    assert (source[0].turns[0].text, source[0].turns[0].ids) == ("What is [1] doing at <1>?", (1, 2))
    assert [len(source[i].media.paths) for i in range(len(source))] == [7, 7, 7, 9, 9, 9, 1, 1, 1]


def test_half_of_inst_it_shows_its_objects_on_one_frame(tmp_path):
    source, once = write("inst_it_video_qa_raw", tmp_path), 0
    for seed in range(40):
        example = draw(source[1], DrawOptions(image_size=SIDE), np.random.default_rng(seed))
        assert len(example.clip.frames) == 7  # all frames are taken, however many are asked for
        visible = example.memory.any(axis=(2, 3))
        single = visible.sum() == 2
        once += single
        # the second object comes in on frame 2, so only later frames show both
        assert np.array_equal(visible[0], visible[1]) and visible[0].argmax() >= 2 if single else visible[0].all() and visible[1].sum() == 5
    assert 10 < once < 30


def test_a_single_mark_stays_on_its_frame(tmp_path):
    source = write("videorefer_short_caption", tmp_path)
    for annotation, example in drawn(source, DrawOptions(sample_frames=(5, 5), image_size=SIDE)):
        assert example.clip.indices[example.memory[0].any(axis=(1, 2))].tolist() == [annotation.media.anchor]


def test_two_listed_objects(tmp_path):
    source = write("videorefer_qa", tmp_path)
    assert source[1].turns[0].ids == (0, 1)
    assert (source[1].turns[0].text, source[1].turns[0].answer) == ("Is [0] above [1]?", "Yes, [0] is above [1].")
    assert source[1].media.keep == tuple(range(0, 24, 2)) and source[2].media.anchor == 4


def test_descriptions_are_asked_for_in_many_ways():
    assert len(set(DESCRIBE_PROMPTS)) == len(DESCRIBE_PROMPTS) >= 30
    assert all(prompt.count("{}") == 1 for prompt in DESCRIBE_PROMPTS)


@pytest.mark.parametrize(
    ("name", "filters", "left"),
    [
        ("videorefer_detailed_caption", Filters(max_words=9), 1),
        ("videorefer_detailed_caption", Filters(min_words=10), 3),
        ("inst_it_video_qa_raw", Filters(max_words=10), 6),
        ("osprey_conversation", Filters(min_words=12), 1),
        ("osprey_detail_description", Filters(max_words=-280), 1),  # each drawn question counts -100
    ],
)
def test_long_and_short_texts_can_be_left_out(tmp_path, name, filters, left):
    write(name, tmp_path)
    assert len(open_source(name, tmp_path, filters=filters)) == left


def test_an_object_that_no_drawn_frame_shows_is_refused(tmp_path, rng):
    source = write("videorefer_qa", tmp_path)
    path = tmp_path / "videorefer/VideoRefer-700K/masks_qa/1.json"
    masks = json.loads(path.read_text())
    masks[1] = [[None] for _ in masks[1]]
    path.write_text(json.dumps(masks))
    with pytest.raises(UserError, match="videorefer_qa qa-75k_1: an object's mask is empty on all 12 frames"):
        draw(source[1], DrawOptions(sample_frames=(12, 12), image_size=SIDE), rng)


def test_records_whose_objects_cannot_be_told_apart_are_named(tmp_path):
    write("videorefer_qa", tmp_path)
    path = tmp_path / "videorefer/VideoRefer-700K/videorefer-qa-75k-wo-masks.json"
    records = json.loads(path.read_text())
    records[1]["conversations"][0]["value"] = "<video>\nIs <region> above <region>?"
    path.write_text(json.dumps(records))
    for name in ("videorefer_qa", "videorefer_qa_mem"):
        with pytest.raises(UserError, match=f"{name} qa-75k_1: 2 objects in 'Is <region> above <region>"):
            len(open_source(name, tmp_path))


def test_inst_it_without_frames_or_with_odd_numbers(tmp_path):
    write("inst_it_video_qa_raw", tmp_path)
    path = tmp_path / "inst_it/Inst-IT-Dataset/inst_it_dataset_video_21k_w_mask.json"
    records = json.loads(path.read_text())
    records[0]["question_answer_pairs"][0]["question"] = "Where is [0]?"
    path.write_text(json.dumps(records))
    with pytest.raises(UserError, match="mentions the objects 0, 1, 2, expected numbers from 1"):
        len(open_source("inst_it_video_qa_raw", tmp_path))
    records[0]["video_path"] = "videos/nowhere"
    path.write_text(json.dumps(records))
    with pytest.raises(UserError, match="videos_raw/nowhere is missing"):
        len(open_source("inst_it_video_qa_raw", tmp_path))
