"""A converted directory is checked before its arrays are read, and names the tokens that end an answer."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from unipixel_jax.config import UniPixelConfig
from unipixel_jax.core import checkpoint
from unipixel_jax.errors import UserError
from unipixel_jax.infer.loading import EMBEDDED, end_tokens, load
from unipixel_jax.processing.tokenizer import Tokenizer

CASES = Path(__file__).parents[1] / "cases"
TEXT_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@pytest.fixture
def root(tmp_path):
    """The embedded model without what says where its answers end."""
    for name in TEXT_FILES:
        shutil.copy(EMBEDDED / name, tmp_path)
    write(tmp_path, "config.json", {key: value for key, value in read(tmp_path).items() if key != "eos_token_id"})
    return tmp_path


def read(root):
    return json.loads((root / "config.json").read_text())


def write(root, name, value):
    (root / name).write_text(json.dumps(value))


def ends(root):
    return end_tokens(root, UniPixelConfig.from_directory(root), Tokenizer.from_directory(root))


def say(root, generation=..., top=..., text=...):
    """Write an ``eos_token_id`` to some of the three files or tables that may hold it."""
    if generation is not ...:
        write(root, "generation_config.json", {"eos_token_id": generation})
    raw = read(root)
    raw |= {} if top is ... else {"eos_token_id": top}
    raw["text_config"] |= {} if text is ... else {"eos_token_id": text}
    write(root, "config.json", raw)


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ({"generation": 5, "top": 6, "text": 7}, (5,)),
        ({"generation": [5, 8], "top": 6, "text": 7}, (5, 8)),
        ({"generation": None, "top": 6, "text": 7}, (6,)),
        ({"top": [6, 9], "text": 7}, (6, 9)),
        ({"text": 7}, (7,)),
        ({"text": [7, 8]}, (7, 8)),
        ({"top": None, "text": 0}, (0,)),
    ],
)
def test_the_first_place_that_names_end_tokens_counts(root, places, expected):
    say(root, **places)
    assert ends(root) == expected


def test_without_any_it_is_the_tokenizer_s(root):
    assert ends(root) == (Tokenizer.from_directory(root).eos_id,)
    say(root, generation=None, top=None, text=None)
    assert ends(root) == (Tokenizer.from_directory(root).eos_id,)


@pytest.mark.parametrize("place", ["generation", "top", "text"])
@pytest.mark.parametrize("value", ["<|im_end|>", -1, True, 1.5, 520, 10**12, [], [5, "x"], [5, 520], {"id": 5}])
def test_end_tokens_that_are_none_are_refused(root, place, value):
    say(root, **{place: value})
    with pytest.raises(UserError, match=r"has the eos_token_id .*, expected ids of tokens below 520"):
        ends(root)


def test_an_end_token_as_newer_transformers_save_it(tmp_path):
    """``eos_token_id`` in text_config alone, and no generation_config.json."""
    shutil.copy(CASES / "eos_in_text_config" / "config.json", tmp_path)
    config = UniPixelConfig.from_directory(tmp_path)
    assert end_tokens(tmp_path, config, Tokenizer.from_directory(EMBEDDED)) == (497,)


def change(root, part, **values):
    raw = read(root)
    (raw[part] if part else raw).update(values)
    write(root, "config.json", raw)


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        ("text_config", {"vocab_size": 500}, "but the embedding has 500 rows"),
        (None, {"seg_token_id": 520}, "seg_token_id is 520, but the embedding has 520 rows"),
        (None, {"seg_token_id": -1}, "seg_token_id is -1"),
        (None, {"mem_token_id": 1.0}, "mem_token_id is 1.0"),
        ("text_config", {"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        ("sam2_model", {"image_size": 10**6}, "image_size is 1000000"),
        ("text_config", {"num_hidden_layers": 1024}, "does not fit this model"),
        ("vision_config", {"depth": 1024, "fullatt_block_indexes": [1000]}, "does not fit this model"),
        ("sam2_model", {"stages": [128, 128, 128, 128]}, "does not fit this model"),
    ],
)
def test_sizes_that_are_not_those_of_the_arrays_are_refused_before_any_is_read(root, monkeypatch, part, values, message):
    for file in EMBEDDED.glob("params*"):
        (root / file.name).symlink_to(file)
    shutil.copy(EMBEDDED / "manifest.json", root)
    monkeypatch.setattr(checkpoint, "_restored", None)
    change(root, part, **values)
    with pytest.raises(UserError, match=message) as caught:
        load(root)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_with_more_tokens_than_rows_is_refused(root):
    config = UniPixelConfig.from_directory(root)
    smaller = dataclasses.replace(config, text=dataclasses.replace(config.text, vocab_size=520))
    Tokenizer.from_directory(root).check(smaller)
    raw = json.loads((root / "tokenizer.json").read_text())
    raw["added_tokens"].append({**raw["added_tokens"][-1], "id": 520, "content": "<|more|>"})
    write(root, "tokenizer.json", raw)
    with pytest.raises(UserError, match=r"'<\|more\|>' the id 520, but the model's embedding has 520 rows"):
        Tokenizer.from_directory(root).check(smaller)
