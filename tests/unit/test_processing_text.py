"""Tokenizer, chat template and labels."""

import json
import shutil

import numpy as np
import pytest
from processing_cases import HERE, recorded, tokenizer

from unipixel_jax.config import UniPixelConfig, preset
from unipixel_jax.errors import UserError
from unipixel_jax.processing.chat import IGNORE_INDEX, chatml_labels, expand_pictures, seconds_per_grid
from unipixel_jax.processing.tokenizer import Tokenizer

CONFIG = preset("tiny")
TALK = [
    {"role": "user", "content": [{"type": "text", "text": "Segment the left dog."}]},
    {"role": "assistant", "content": "Sure, it is <|seg|>."},
    {"role": "user", "content": "And what is it doing?"},
    {"role": "assistant", "content": "It is running."},
]


def test_labels_match_the_reference():
    ids, labels = chatml_labels(tokenizer().render(TALK, add_generation_prompt=False).rstrip("\n"), tokenizer())
    np.testing.assert_array_equal(ids, recorded()["chatml_labels.inputs.input_ids"])
    np.testing.assert_array_equal(labels, recorded()["chatml_labels.outputs.labels"])


def test_labels_are_the_answers_and_their_ends():
    ids, labels = chatml_labels(tokenizer().render(TALK, add_generation_prompt=False), tokenizer())
    assert tokenizer().decode(ids[labels != IGNORE_INDEX]) == "Sure, it is <|seg|>.<|im_end|>It is running.<|im_end|>"


def test_a_talk_without_an_answer_has_no_labels():
    with pytest.raises(UserError, match="no finished assistant turn"):
        chatml_labels(tokenizer().render(TALK[:1], add_generation_prompt=True), tokenizer())


def test_template_without_a_system_turn_adds_one():
    text = tokenizer().render([{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Hi"}]}], add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>Hi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_videos_are_expanded_in_order():
    text = expand_pictures("a<|video_pad|>b<|video_pad|>c", [(1, 2, 4), (2, 2, 2)], CONFIG.vision)
    assert text == "a" + "<|video_pad|>" * 2 + "b" + "<|video_pad|>" * 2 + "c"
    with pytest.raises(UserError, match=r"2 <\|video_pad\|> or <\|image_pad\|> for 1 clips"):
        expand_pictures("<|video_pad|><|video_pad|>", [(1, 2, 2)], CONFIG.vision)


def test_frames_are_taken_to_be_half_a_second_apart():
    assert seconds_per_grid(CONFIG.vision) == 1.0
    assert seconds_per_grid(CONFIG.vision, 4.0) == 0.5


def test_ids_of_another_model_are_refused():
    tokenizer().check(CONFIG)
    with pytest.raises(UserError, match=r"<\|ref\|> the id 505, config.json 151665"):
        tokenizer().check(UniPixelConfig())


def copy(tmp_path):
    return shutil.copytree(HERE / "tokenizer", tmp_path / "tokenizer")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_missing_and_broken_files(tmp_path, name):
    root = copy(tmp_path)
    (root / name).write_text("{")
    with pytest.raises(UserError, match=rf"{name} is not .* copy it again"):
        Tokenizer.from_directory(root)
    (root / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        Tokenizer.from_directory(root)


def test_template_may_lie_in_older_places(tmp_path):
    root = copy(tmp_path)
    expected = Tokenizer.from_directory(root)
    template = (root / "chat_template.jinja").read_text()
    (root / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="no chat template"):
        Tokenizer.from_directory(root)
    settings = json.loads((root / "tokenizer_config.json").read_text())
    (root / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": template}))
    assert Tokenizer.from_directory(root).template == expected.template
    (root / "chat_template.json").write_text(json.dumps({"chat_template": "other"}))
    assert Tokenizer.from_directory(root).template == "other"


def test_a_broken_template_and_a_lost_token(tmp_path):
    root = copy(tmp_path)
    (root / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(UserError, match="chat template cannot be read"):
        Tokenizer.from_directory(root).render(TALK, add_generation_prompt=True)
    settings = json.loads((root / "tokenizer_config.json").read_text())
    (root / "tokenizer_config.json").write_text(json.dumps({**settings, "eos_token": "<|stop|>"}))
    with pytest.raises(UserError, match=r"eos_token '<\|stop\|>'"):
        Tokenizer.from_directory(root)
