"""Appends UniPixel's three tokens to Qwen's tokenizer files. These are edited as JSON, so that all else in them stays as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unipixel_jax.core.files import read_json_object
from unipixel_jax.errors import UserError

from .hf_config import COPY, write_json

NEW_TOKENS = ("<|ref|>", "<|seg|>", "<|mem|>")
"""UniPixel's tokens, in the order in which the reference appends them (unipixel/train/train.py)."""


def token_ids(directory: Path) -> tuple[dict[str, int], int]:
    """Return the ids of all tokens of a directory's `tokenizer.json`, and how many tokens there are.

    Raises:
        UserError: the file is absent or is no tokenizer.
    """
    path = directory / "tokenizer.json"
    raw = read_json_object(path, COPY)
    try:
        ids = {**raw["model"]["vocab"], **{token["content"]: token["id"] for token in raw["added_tokens"]}}
    except (KeyError, TypeError):
        ids = {}
    if not ids or not all(type(number) is int and number >= 0 for number in ids.values()):
        raise UserError(f"{path} has no vocabulary and added tokens with their ids; expected the file of a fast Qwen2 tokenizer")
    return ids, len(ids)


def append_tokens(directory: Path) -> None:
    """Write those of UniPixel's tokens that are missing into the tokenizer files of `directory`, each at the next free id.

    Raises:
        UserError: a file is damaged or is no tokenizer.
    """
    ids, _ = token_ids(directory)
    new = {token: max(ids.values()) + 1 + i for i, token in enumerate(t for t in NEW_TOKENS if t not in ids)}
    if not new:
        return
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer = read_json_object(directory / "tokenizer.json", COPY)
    tokenizer["added_tokens"] += [{"id": i, "content": token, **flags} for token, i in new.items()]
    write_json(directory / "tokenizer.json", tokenizer)
    _update(directory / "tokenizer_config.json", {str(i): {"content": token, **flags} for token, i in new.items()})
    _update(directory / "special_tokens_map.json", {})
    if (directory / "added_tokens.json").is_file():
        write_json(directory / "added_tokens.json", read_json_object(directory / "added_tokens.json", COPY) | new)


def _update(path: Path, decoder: dict[str, Any]) -> None:
    """Make the new tokens the additional special tokens of a settings file, as `add_special_tokens` does in the reference."""
    if path.is_file():
        raw = read_json_object(path, COPY)
        raw["additional_special_tokens"] = list(NEW_TOKENS)
        if decoder:
            known = raw.get("added_tokens_decoder") or {}
            if not isinstance(known, dict):
                raise UserError(f"{path} has an added_tokens_decoder that is a {type(known).__name__}, expected an object; copy it again")
            raw["added_tokens_decoder"] = known | decoder
        write_json(path, raw)
