"""Tokenizers read by any version of transformers give the ids of their files, and nothing is printed."""

import json
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
from processing_cases import HERE

from unipixel_jax.errors import UserError
from unipixel_jax.processing.tokenizer import QWEN_PATTERN, Tokenizer

FILES = HERE / "tokenizer"
PIECES = ["a", "dog's", " 'S", "\n", "  ", "12", "é", "e\u0301", "ﬁ", "日本", "😀", "<|seg|>", "<|im_end|>", "\t", "...", "\u200b", "Å", "<|", "|>", "I'LL"]


def texts(count):
    rng = random.Random(0)
    return ["".join(rng.choices(PIECES, k=rng.randrange(1, 30))) for _ in range(count)]


def as_qwen(folder):
    """The tokenizer with Qwen's normaliser and pattern in its tokenizer.json."""
    root = shutil.copytree(FILES, folder / "whole")
    raw = json.loads((root / "tokenizer.json").read_text())
    split = {"type": "Split", "pattern": {"Regex": QWEN_PATTERN}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    raw |= {"normalizer": {"type": "NFC"}, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]}}
    (root / "tokenizer.json").write_text(json.dumps(raw))
    return root, raw


def older(folder, raw, *, decoder=True):
    """The same in the files of older directories."""
    root = folder / "parts"
    root.mkdir()
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in raw["model"]["merges"]]
    (root / "vocab.json").write_text(json.dumps(raw["model"]["vocab"]))
    (root / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    shutil.copy(FILES / "chat_template.jinja", root)
    settings = json.loads((FILES / "tokenizer_config.json").read_text())
    settings.pop("added_tokens_decoder", None)
    if decoder:
        settings["added_tokens_decoder"] = {str(token["id"]): {k: v for k, v in token.items() if k != "id"} for token in raw["added_tokens"]}
    else:
        (root / "added_tokens.json").write_text(json.dumps({token["content"]: token["id"] for token in raw["added_tokens"]}))
    (root / "tokenizer_config.json").write_text(json.dumps(settings))
    return root


def test_ids_are_those_of_the_file():
    ours, plain = Tokenizer.from_directory(FILES), tokenizers.Tokenizer.from_file(str(FILES / "tokenizer.json"))
    for text in texts(300):
        assert ours.encode(text).tolist() == plain.encode(text).ids
        assert ours.decode(ours.encode(text)) == plain.decode(plain.encode(text).ids, skip_special_tokens=False)


@pytest.mark.parametrize("decoder", [True, False])
def test_a_vocabulary_and_merges_are_qwens_tokenizer(tmp_path, decoder):
    root, raw = as_qwen(tmp_path)
    whole, parts = Tokenizer.from_directory(root), Tokenizer.from_directory(older(tmp_path, raw, decoder=decoder))
    assert (parts.pad_id, parts.eos_id, parts.template) == (whole.pad_id, whole.eos_id, whole.template)
    for text in texts(300):
        np.testing.assert_array_equal(parts.encode(text), whole.encode(text))


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "added_tokens.json"])
def test_a_vocabulary_that_is_not_whole_is_refused(tmp_path, name):
    root = older(tmp_path, as_qwen(tmp_path)[1], decoder=False)
    (root / name).write_text("{")
    with pytest.raises(UserError, match="copy it again"):
        Tokenizer.from_directory(root)
    (root / name).unlink()
    with pytest.raises(UserError, match="does not exist"):
        Tokenizer.from_directory(root)


@pytest.mark.parametrize("added", [{"<|seg|>": 9999}, {"<|seg|>": "x"}, {"<|seg|>": None}, []])
def test_added_tokens_with_other_ids_are_refused(tmp_path, added):
    root = older(tmp_path, as_qwen(tmp_path)[1], decoder=False)
    (root / "added_tokens.json").write_text(json.dumps(added))
    with pytest.raises(UserError, match="copy it again"):
        Tokenizer.from_directory(root)


def test_a_normaliser_that_doubles_is_refused_before_it_meets_a_token(tmp_path):
    """Reading the file as a whole would double its token forty times."""
    root = shutil.copytree(FILES, tmp_path / "tokenizer")
    raw = json.loads((root / "tokenizer.json").read_text())
    doubling = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    token = {"content": "a", "single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    raw["added_tokens"].append({"id": 1 + max(token["id"] for token in raw["added_tokens"]), **token})
    (root / "tokenizer.json").write_text(json.dumps(raw | {"normalizer": {"type": "Sequence", "normalizers": [doubling] * 40}}))
    with pytest.raises(UserError, match="normalizer replaces text"):
        Tokenizer.from_directory(root)


def test_nothing_is_said_and_no_other_library_comes_along():
    code = (
        f"import sys; from unipixel_jax.processing.tokenizer import Tokenizer; t = Tokenizer.from_directory({str(FILES)!r});"
        "t.render([{'role': 'user', 'content': 'Hi'}], add_generation_prompt=True);"
        "assert 'transformers' in sys.modules and not {'jax', 'torch', 'tensorflow'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
