"""`config.json` and the small files beside the weights: reading, judging, writing, copying."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from unipixel_jax.config import UniPixelConfig
from unipixel_jax.errors import UserError

COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
)
"""The tokenizer's, processor's and generation's files, any of which a checkpoint may have."""

UNIPIXEL, QWEN = "pixel_qwen2_5_vl", "qwen2_5_vl"
"""The values of `model_type` that we know."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UserError: no such file, or something else in it.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; expected a complete checkpoint directory") from None
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error}); copy it again") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} holds a {type(found).__name__}, expected a JSON object")
    return found


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object, with two spaces of indentation as transformers does."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_config(directory: Path) -> tuple[dict[str, Any], UniPixelConfig]:
    """A UniPixel directory's `config.json`, as it is and as our configuration.

    Raises:
        UserError: absent, or another model's.
    """
    raw = read_json(directory / "config.json")
    kind = raw.get("model_type")
    if kind == QWEN:
        raise UserError(f"{directory} is a plain Qwen2.5-VL, expected UniPixel; to assemble a fresh one: to-jax --qwen {directory} --sam2 FILE.pt DST")
    if kind != UNIPIXEL:
        raise UserError(f"{directory} is a checkpoint of another model (model_type {kind!r}); expected UniPixel's, {UNIPIXEL!r}")
    return raw, UniPixelConfig.from_hf(raw)


def merged_config(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a model that was trained from `base` and saved only `own`: what `own` says, and `base` where it says nothing."""
    return {key: value for key, value in {**base, **own}.items() if key != "base_model_path"}


def copy_companions(sources: Iterable[Path], target: Path) -> None:
    """Copy the companions of every directory, verbatim; a later directory's file wins."""
    for source in sources:
        for name in COMPANIONS:
            if (source / name).is_file():
                shutil.copyfile(source / name, target / name)
