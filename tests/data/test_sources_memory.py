import json
import re
from dataclasses import replace

import numpy as np
import pytest
from marked_samples import SIDE, WHOLE, assembled, drawn, text_of, write

from unipixel_jax.data.annotation import DrawOptions
from unipixel_jax.data.draw import draw
from unipixel_jax.data.frames import square_masks
from unipixel_jax.data.prompts_regions import LOCATE_PROMPTS
from unipixel_jax.data.sources import open_source
from unipixel_jax.errors import UserError
from unipixel_jax.processing.prompts import locating_turn

COUNTS = {"videorefer_qa_mem": 3, "inst_it_video_qa_raw_mem": 6}


@pytest.fixture(scope="module", params=COUNTS)
def source(request, tmp_path_factory):
    return write(request.param, tmp_path_factory.mktemp("data"))


def test_counts_and_halves(source):
    assert len(source) == COUNTS[source.name]
    points = sum("point" in kind for kind in source.data_types)
    assert points == len(source) // 2
    assert source.data_types == open_source(source.name, source.root).data_types


def test_what_is_marked_is_segmented(source):
    """Point or box, mask, ``<|ref|>`` and ``<|seg|>`` belong to the same object, in the same order."""
    for annotation, example in drawn(source):
        turn = annotation.turns[0]
        masks = square_masks(turn.masks.read(range(len(example.clip.frames)), example.clip.frames.shape[1:3]), SIDE)
        assert np.array_equal(example.masks, masks) and masks.any(axis=(1, 2, 3)).all()
        text = text_of(example)
        assert [int(n) for n in re.findall(r"\[(\d+)\] <\|ref\|>", text)] == [int(n) for n in re.findall(r"\[(\d+)\] <\|seg\|>", text)] == list(turn.ids)
        assert len(example.references) == len(masks) == text.count("<|ref|>") == text.count("<|seg|>")
        for reference, mask in zip(example.references, masks, strict=True):
            x, y = reference.coords.mean(axis=0).round().astype(int)
            assert mask[reference.frame, y, x], "discs are convex, so a box's middle lies inside too"
            assert len(reference.coords) == (1 if "point" in annotation.data_type else 2)


def test_arrays_come_about(source):
    for _, example in drawn(source, DrawOptions(sample_frames=(4, 4), image_size=SIDE)):
        sample = assembled(example)
        assert sample.masks.shape[1] == len(example.references) and sample.masks.shape[2:] == (SIDE, SIDE)


def test_the_question_ends_with_one_option(source):
    letters = set()
    for annotation, example in drawn(source):
        (letter,) = re.findall(r"\nOptions:\n\(([ABCD])\) ", text_of(example))
        assert f"({letter})" in annotation.turns[0].text
        letters.add(letter)
    assert len(letters) > 1


def test_clips_and_photos_are_told_apart(tmp_path):
    source = write("inst_it_video_qa_raw_mem", tmp_path)
    assert [kind.split("_")[2] for kind in source.data_types] == ["video"] * 3 + ["image"] * 3
    assert {len(source[i].media.paths) for i in range(6)} == {1, 7}


def test_objects_come_in_the_order_of_mention(tmp_path):
    write("inst_it_video_qa_raw_mem", tmp_path)
    path = tmp_path / "inst_it/Inst-IT-Dataset/inst_it_dataset_video_21k_w_mask.json"
    records = json.loads(path.read_text())
    records[0]["question_answer_pairs"][0] = {"question": "Is [03] below [1]?", "answer": "Yes, [3] is below [1] and [2]."}
    path.write_text(json.dumps(records))
    turn = open_source("inst_it_video_qa_raw_mem", tmp_path)[0].turns[0]
    assert turn.ids == (3, 1, 2) and turn.answer == "[3] <|seg|> [1] <|seg|> [2] <|seg|>"
    assert re.fullmatch(r"Is \[3\] <\|ref\|> below \[1\] <\|ref\|>\?\nOptions:\n\(.\) Yes, \[3\] is below \[1\] and \[2\] <\|ref\|>\.", turn.text)


def test_what_inference_asks_is_learned():
    question, answer = locating_turn("Is <region> above <region>?", 2)
    asked = LOCATE_PROMPTS[0].format("Is [0] <|ref|> above [1] <|ref|>?")
    assert question.replace("?.", "?") == asked and answer == "[0] <|seg|> [1] <|seg|>"
    assert len(set(LOCATE_PROMPTS)) == len(LOCATE_PROMPTS) >= 6 and all(prompt.count("{}") == 1 for prompt in LOCATE_PROMPTS)


def test_too_many_objects_and_empty_masks_are_refused(tmp_path, rng):
    source = write("videorefer_qa_mem", tmp_path)
    with pytest.raises(UserError, match="has 2 objects, expected at most max_objects=1"):
        draw(source[1], replace(WHOLE, max_objects=1), rng)
    path = tmp_path / "videorefer/VideoRefer-700K/masks_qa/1.json"
    masks = json.loads(path.read_text())
    path.write_text(json.dumps([masks[0], [[None] for _ in masks[1]]]))
    with pytest.raises(UserError, match="empty on all"):
        draw(source[1], WHOLE, rng)
