"""Reading, writing and copying of `config.json` and of the other small files beside the weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from unipixel_jax.config import ConfigError, UniPixelConfig
from unipixel_jax.core.files import read_json_object
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
"""The files with tokenizer, processor and generation settings, any of which a checkpoint may have."""

COPY = "expected a complete checkpoint directory, copy it again"
"""The advice of messages where a file of a checkpoint cannot be read."""

UNIPIXEL, QWEN = "pixel_qwen2_5_vl", "qwen2_5_vl"
"""The values of `model_type` that are known here."""


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object in the form of `json_bytes`."""
    path.write_bytes(json_bytes(value))


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """Return the content of a file with a JSON object, indented by two spaces as transformers does.

    Raises:
        UserError: the object holds half a surrogate pair, which JSON can spell but UTF-8 cannot.
    """
    try:
        return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError as error:
        raise UserError(f"a JSON file of the checkpoint holds {error.object[error.start : error.end]!r}, which is no character; copy it again") from None


def read_config(directory: Path) -> tuple[dict[str, Any], UniPixelConfig]:
    """Return a UniPixel directory's `config.json`, as it is and as our configuration.

    Raises:
        UserError: the file is absent, or is another model's.
    """
    raw = read_json_object(directory / "config.json", COPY)
    kind = raw.get("model_type")
    if kind == QWEN:
        raise UserError(f"{directory} is a plain Qwen2.5-VL, expected UniPixel; to assemble a fresh one: to-jax --qwen {directory} --sam2 FILE.pt DST")
    if kind != UNIPIXEL:
        raise UserError(f"{directory} is a checkpoint of another model (model_type {kind!r}); expected UniPixel's, {UNIPIXEL!r}")
    return raw, model_config(raw, directory)


def model_config(raw: Mapping[str, Any], directory: Path) -> UniPixelConfig:
    """Return the sizes that a `config.json`, or one merged for a directory, gives the model.

    Args:
        raw: the content of the `config.json`.
        directory: its directory, for messages.

    Raises:
        ConfigError: a key is missing, out of range or at odds with another.
    """
    try:
        return UniPixelConfig.from_hf(raw)
    except ConfigError as error:
        raise ConfigError(f"{directory / 'config.json'}: {error}") from None


def merged_config(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of a model that was trained from `base` and saved only `own`, whose keys win over those of `base`."""
    return {key: value for key, value in {**base, **own}.items() if key != "base_model_path"}


def copy_companions(sources: Iterable[Path], target: Path) -> None:
    """Copy the files of `COMPANIONS` from every directory, verbatim; a later directory's file wins."""
    for source in sources:
        for name in COMPANIONS:
            if (source / name).is_file():
                shutil.copyfile(source / name, target / name)
