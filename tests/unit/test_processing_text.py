"""Tokenizer, chat template and labels."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from processing_cases import HERE, recorded, tokenizer

from unipixel_jax.config import UniPixelConfig, preset
from unipixel_jax.errors import UserError
from unipixel_jax.processing import template
from unipixel_jax.processing.chat import IGNORE_INDEX, chatml_labels, expand_image_tokens, seconds_per_grid
from unipixel_jax.processing.template import ChatTemplate
from unipixel_jax.processing.tokenizer import QWEN_PATTERN, Tokenizer

CASES = Path(__file__).parents[1] / "cases"

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
    text = expand_image_tokens("a<|video_pad|>b<|video_pad|>c", [(1, 2, 4), (2, 2, 2)], CONFIG.vision)
    assert text == "a" + "<|video_pad|>" * 2 + "b" + "<|video_pad|>" * 2 + "c"
    with pytest.raises(UserError, match=r"2 <\|video_pad\|> or <\|image_pad\|> for 1 clips"):
        expand_image_tokens("<|video_pad|><|video_pad|>", [(1, 2, 2)], CONFIG.vision)


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
    with pytest.raises(UserError, match=f"{name} does not exist"):
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


def edited(tmp_path, **changes):
    """The tokenizer with other values in its tokenizer.json; "model" changes some of the model's."""
    root = copy(tmp_path)
    raw = json.loads((root / "tokenizer.json").read_text())
    raw["model"] |= changes.pop("model", {})
    (root / "tokenizer.json").write_text(json.dumps(raw | changes))
    return root


SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}
TEXT = "Please segment the left dog, it's brown.\n  And 12 cats"


@pytest.mark.parametrize(
    "changes",
    [
        {"truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}},
        {"truncation": {"direction": "Left", "max_length": 1, "strategy": "OnlyFirst", "stride": 0}},
        {"padding": {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "!"}},
        {"padding": {"strategy": "BatchLongest", "direction": "Left", "pad_to_multiple_of": 32, "pad_id": 0, "pad_type_id": 0, "pad_token": "!"}},
        {"model": {"dropout": 0.5}},
    ],
)
def test_what_training_scripts_leave_in_a_tokenizer_is_not_applied(tmp_path, changes):
    other = Tokenizer.from_directory(edited(tmp_path, **changes))
    for _ in range(5):
        np.testing.assert_array_equal(other.encode(TEXT), tokenizer().encode(TEXT))


def test_parts_that_change_the_ids_for_good_are_applied(tmp_path):
    """Tokens that a post-processor adds, and Unicode's normal forms, are applied as in transformers. Added tokens have no position in the text and no label."""
    start = tokenizer().backend.token_to_id("<|im_start|>")
    added = {"<|im_start|>": {"id": "<|im_start|>", "ids": [start], "tokens": ["<|im_start|>"]}}
    pieces = [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    post = {"type": "TemplateProcessing", "single": pieces, "pair": [*pieces, {"Sequence": {"id": "B", "type_id": 1}}], "special_tokens": added}
    other = Tokenizer.from_directory(edited(tmp_path, post_processor=post, normalizer={"type": "NFC"}))
    assert other.encode("e\u0301").tolist() == [start, *tokenizer().encode("\u00e9")]
    text = tokenizer().render(TALK, add_generation_prompt=False)
    ids, labels = chatml_labels(text, other)
    expected, expected_labels = chatml_labels(text, tokenizer())
    np.testing.assert_array_equal(ids, [start, *expected])
    np.testing.assert_array_equal(labels, [IGNORE_INDEX, *expected_labels])


def test_the_pattern_of_qwen_is_known(tmp_path):
    parts = [{**SPLIT, "pattern": {"Regex": QWEN_PATTERN}}, {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}]
    other = Tokenizer.from_directory(edited(tmp_path, pre_tokenizer={"type": "Sequence", "pretokenizers": parts}))
    assert other.decode(other.encode(TEXT)) == TEXT


DOUBLING = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
PIECE = {"Sequence": {"id": "A", "type_id": 0}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre_tokenizer": {**SPLIT, "pattern": {"Regex": "(a|a|aa)+$"}}}, "pre_tokenizer searches for"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{**SPLIT, "pattern": {"Regex": "(x+x+)+y"}}]}}, "pre_tokenizer searches for"),
        ({"normalizer": {"type": "Sequence", "normalizers": [DOUBLING] * 40}}, "normalizer replaces text"),
        ({"decoder": {"type": "Replace", "pattern": {"Regex": "(a*)*b"}, "content": "x"}}, "decoder searches for"),
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "ByteLevel"}] * 40}}, "has 41 steps"),
        ({"post_processor": {"type": "TemplateProcessing", "single": [PIECE] * 1000, "pair": [PIECE], "special_tokens": {}}}, "entries"),
    ],
)
def test_parts_that_may_take_without_bound_are_refused(tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        Tokenizer.from_directory(edited(tmp_path, **changes))
    assert "\n" not in str(caught.value)


def test_a_tokenizer_that_panics_is_refused_before_it_does(tmp_path, capfd):
    root = copy(tmp_path)
    shutil.copy(CASES / "tokenizer_panic" / "tokenizer.json", root)
    with pytest.raises(UserError, match=r"searches for '\(a\|a\|aa\)\+\$'"):
        Tokenizer.from_directory(root)
    assert capfd.readouterr().err == ""


class Panic(BaseException):
    """Stands in for Rust's panics, which are no Exception either."""


class Panicking:
    def encode(self, text):
        raise Panic("retry-limit-in-match over")

    def decode(self, ids, skip_special_tokens):
        raise Panic("out of bounds")


@pytest.mark.parametrize("call", [lambda t: t.encode("a"), lambda t: t.encode_with_starts("a"), lambda t: t.decode([1])])
def test_a_panic_is_one_line(call):
    with pytest.raises(UserError, match=r"the tokenizer cannot .*: copy it again"):
        call(dataclasses.replace(tokenizer(), backend=Panicking()))


def test_an_interruption_is_no_panic():
    class Interrupted:
        def encode(self, text):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dataclasses.replace(tokenizer(), backend=Interrupted()).encode("a")


@pytest.mark.parametrize("number", [512, 4_294_967_290])
def test_tokens_beyond_the_embedding_are_refused(tmp_path, number):
    vocabulary = json.loads((HERE / "tokenizer" / "tokenizer.json").read_text())["model"]["vocab"]
    root = edited(tmp_path, model={"vocab": {**vocabulary, max(vocabulary, key=vocabulary.get): number}})
    with pytest.raises(UserError, match=rf"the id {number}, but the model's embedding has 512 rows"):
        Tokenizer.from_directory(root).check(CONFIG)


def test_files_that_are_no_files(tmp_path):
    root = copy(tmp_path)
    (root / "tokenizer.json").unlink()
    os.mkfifo(root / "tokenizer.json")
    with pytest.raises(UserError, match="is a pipe"):
        Tokenizer.from_directory(root)
    (root / "tokenizer_config.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="nested too deeply"):
        Tokenizer.from_directory(root)


def test_a_template_that_is_no_text(tmp_path):
    root = copy(tmp_path)
    (root / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="is not UTF-8"):
        Tokenizer.from_directory(root)
    (root / "chat_template.jinja").write_text("a" * (template.MAX_SOURCE + 1))
    with pytest.raises(UserError, match="expected at most 262,144"):
        Tokenizer.from_directory(root).render(TALK, add_generation_prompt=True)


def rendered(source, messages=TALK):
    return ChatTemplate(source).render(messages, add_generation_prompt=True)


@pytest.mark.parametrize("file", sorted(path.name for path in (CASES / "jinja").iterdir()))
def test_hostile_templates_are_one_line(file, monkeypatch):
    monkeypatch.setattr(template, "SECONDS", 1)
    with pytest.raises(UserError, match="the chat template fails") as caught:
        rendered((CASES / "jinja" / file).read_text())
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


UNBOUNDED = {
    "doubling": "{% set ns = namespace(x='aa') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
    "a wide format": "{{ '%9000000000d' % 1 }}",
    "a wide filter": "{{ 'a'|center(9000000000) }}",
    "a wide indentation": "{{ 'a\nb'|indent(4000000000) }}",
    "much output": "{% for i in range(9999) %}{% for j in range(9999) %}" + "x" * 1000 + "{% endfor %}{% endfor %}",
    "a recursive loop": "{% for a in [1] recursive %}{{ loop([1, 1]) }}{% endfor %}",
    "two macros": "{% macro f() %}{{ g() }}{% endmacro %}{% macro g() %}{{ f() }}{% endmacro %}{{ f() }}",
    "much of one's own words": "{% for c in messages[0].content %}" + "x" * 100_000 + "{% endfor %}",
}


@pytest.mark.parametrize("name", UNBOUNDED)
def test_templates_without_bound_are_stopped(name, monkeypatch):
    monkeypatch.setattr(template, "SECONDS", 1)
    with pytest.raises(UserError, match="the chat template fails"):
        rendered(UNBOUNDED[name], [{"role": "user", "content": "y" * 10_000}])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{% if 4 is divisibleby 0 %}{% endif %}", "ZeroDivisionError"),
        ("{{ a.b.c }}", "'a' is undefined"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% set n = namespace(x='a') %}{% set n.x = n.x + 1 %}", "TypeError"),
    ],
)
def test_what_fails_in_a_template_is_named(source, message):
    with pytest.raises(UserError, match=f"the chat template fails .*{message}"):
        rendered(source)


@pytest.mark.parametrize("source", ["{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "{{ " + "not " * 50_000 + "1 }}", "{% if 1 %}" * 3000, "{% for %}"])
def test_templates_that_cannot_be_read(source):
    with pytest.raises(UserError, match="the chat template cannot be read"):
        ChatTemplate(source)


QWEN_TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' or 'image' in content %}"
    "{% set image_count.value = image_count.value + 1 %}{% if add_vision_id %}Image {{ image_count.value }}: {% endif %}<|image_pad|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{{ image_count.value }}"
)


def test_plain_templates_are_rendered_at_once_and_others_give_the_same(monkeypatch):
    """A filter makes a template one that a child process renders; its text is that of the plain one."""
    talk = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Hi <there> \u00e9"}]}, {"role": "assistant", "content": "Yes."}]
    plain = rendered(QWEN_TEMPLATE, talk)
    assert plain == "<|im_start|>user\n<|image_pad|>Hi <there> \u00e9<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n1"
    assert rendered(QWEN_TEMPLATE + "{{ ''|trim }}", talk) == plain
    monkeypatch.setattr(template, "_in_child", None)
    assert rendered(QWEN_TEMPLATE, talk) == plain
    assert all(rendered(path.read_text(), talk) for path in (HERE.parent.rglob("chat_template.jinja")))
