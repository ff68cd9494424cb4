"""UniPixel's three tokens in Qwen's tokenizer files, which are edited as JSON, so that all else in them stays as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unipixel_jax.errors import UserError

from .hf_config import read_json, write_json

NEW_TOKENS = ("<|ref|>", "<|seg|>", "<|mem|>")
"""In the order in which the reference appends them (unipixel/train/train.py)."""


def token_ids(directory: Path) -> tuple[dict[str, int], int]:
    """Ids of all tokens of a directory's `tokenizer.json`, and how many there are.

    Raises:
        UserError: the file is absent or is no tokenizer.
    """
    path = directory / "tokenizer.json"
    raw = read_json(path)
    try:
        ids = {**raw["model"]["vocab"], **{token["content"]: token["id"] for token in raw["added_tokens"]}}
    except (KeyError, TypeError):
        raise UserError(f"{path} has no vocabulary and added tokens; expected the file of a fast Qwen2 tokenizer") from None
    return ids, len(ids)


def append_tokens(directory: Path) -> None:
    """Write the tokens that are not there yet into the tokenizer files of `directory`, each at the next free id.

    Raises:
        UserError: see `token_ids`.
    """
    ids, _ = token_ids(directory)
    new = {token: max(ids.values()) + 1 + i for i, token in enumerate(t for t in NEW_TOKENS if t not in ids)}
    if not new:
        return
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer = read_json(directory / "tokenizer.json")
    tokenizer["added_tokens"] += [{"id": i, "content": token, **flags} for token, i in new.items()]
    write_json(directory / "tokenizer.json", tokenizer)
    _update(directory / "tokenizer_config.json", {str(i): {"content": token, **flags} for token, i in new.items()})
    _update(directory / "special_tokens_map.json", {})
    if (directory / "added_tokens.json").is_file():
        write_json(directory / "added_tokens.json", read_json(directory / "added_tokens.json") | new)


def _update(path: Path, decoder: dict[str, Any]) -> None:
    """Name the new tokens as the special ones, as `add_special_tokens` does in the reference."""
    if path.is_file():
        raw = read_json(path)
        raw["additional_special_tokens"] = list(NEW_TOKENS)
        if decoder:
            raw.setdefault("added_tokens_decoder", {}).update(decoder)
        write_json(path, raw)
