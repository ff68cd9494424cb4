"""The text side of a checkpoint directory: tokenizer, special tokens and chat template.

The directory holds what transformers saves (``tokenizer.json``, ``tokenizer_config.json``, ``chat_template.jinja``). The files are read with the
``tokenizers`` and ``jinja2`` packages, on which transformers itself rests: the ids are the same and starting takes a tenth of the time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from unipixel_jax.config import UniPixelConfig
from unipixel_jax.core.files import MAX_JSON_BYTES, read_json_object, require_regular_file
from unipixel_jax.errors import UserError
from unipixel_jax.processing.template import MAX_SOURCE, ChatTemplate

REF_TOKEN = "<|ref|>"
SEG_TOKEN = "<|seg|>"
MEM_TOKEN = "<|mem|>"
VIDEO_TOKEN = "<|video_pad|>"
IMAGE_TOKEN = "<|image_pad|>"

QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2.5's tokenizer cuts words (transformers' ``Qwen2Tokenizer``). Any other pattern may take hours for a line of text, or end the process."""

MAX_STEPS, MAX_ENTRIES = 8, 64
"""Steps, and objects in their description, of one part of a tokenizer. A step may double a text, or repeat it as often as it lists it."""

_ADVICE = "copy it again from the checkpoint"

Message = Mapping[str, Any]
"""One turn: ``{"role": "user" | "assistant" | "system", "content": text, or a list of {"type": "video"} and {"type": "text", "text": ...}}``."""


@dataclass(frozen=True)
class Tokenizer:
    """Text to token ids and back.

    Attributes:
        backend: the fast tokenizer.
        template: source of the chat template, in Jinja.
        pad_id: id that fills up short prompts.
        eos_id: id that ends an answer (``<|im_end|>``).
    """

    backend: tokenizers.Tokenizer
    template: str
    pad_id: int
    eos_id: int

    @classmethod
    def from_directory(cls, directory: str | Path) -> Tokenizer:
        """Read the tokenizer files of a checkpoint directory.

        Raises:
            UserError: a file is missing or cannot be read, or names a token that the tokenizer does not have.
        """
        root = Path(directory)
        settings = read_json_object(root / "tokenizer_config.json", _ADVICE)
        backend = _read_backend(root / "tokenizer.json")
        ids = {}
        for key in ("pad_token", "eos_token"):
            name = settings.get(key)
            name = name.get("content") if isinstance(name, dict) else name
            found = backend.token_to_id(name) if isinstance(name, str) else None
            if found is None:
                raise UserError(f"{root}: the {key} {str(name)[:60]!r} of tokenizer_config.json is not in tokenizer.json; expected files of one checkpoint")
            ids[key] = found
        return cls(backend, _read_template(root, settings), ids["pad_token"], ids["eos_token"])

    def check(self, config: UniPixelConfig) -> None:
        """Compare the ids of the special tokens with those of the model, and all ids with the rows of its embedding.

        Raises:
            UserError: the tokenizer belongs to another checkpoint.
        """
        expected = {REF_TOKEN: config.ref_token_id, SEG_TOKEN: config.seg_token_id, MEM_TOKEN: config.mem_token_id, VIDEO_TOKEN: config.video_token_id}
        for token, number in expected.items():
            if (found := self.backend.token_to_id(token)) != number:
                raise UserError(f"the tokenizer gives {token} the id {found}, config.json {number}: the files are of different checkpoints")
        token, largest = max(self.backend.get_vocab(with_added_tokens=True).items(), key=lambda entry: entry[1])
        rows = config.text.vocab_size
        if largest >= rows:
            raise UserError(
                f"the tokenizer gives {token[:60]!r} the id {largest}, but the model's embedding has {rows} rows (vocab_size in config.json): "
                "expected the tokenizer and the weights of one checkpoint"
            )

    def encode(self, text: str) -> NDArray[np.int32]:
        """Token ids [L] of a text, special tokens written in it included.

        Raises:
            UserError: the tokenizer fails on this text.
        """
        with _failing("the tokenizer cannot encode this text"):
            return np.asarray(self.backend.encode(text).ids, np.int32)

    def encode_with_starts(self, text: str) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Token ids [L], and the index of each token's first character in the text [L].

        Raises:
            UserError: the tokenizer fails on this text.
        """
        with _failing("the tokenizer cannot encode this text"):
            encoding = self.backend.encode(text)
            return np.asarray(encoding.ids, np.int32), np.asarray([start for start, _ in encoding.offsets], np.int32)

    def decode(self, ids: Sequence[int] | NDArray[np.integer]) -> str:
        """The text of token ids, special tokens included.

        Raises:
            UserError: the tokenizer fails on these ids.
        """
        with _failing("the tokenizer cannot decode these tokens"):
            return self.backend.decode([int(i) for i in ids], skip_special_tokens=False)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """The prompt that the chat template makes of a conversation.

        Args:
            messages: the turns in order.
            add_generation_prompt: end with the opening of the assistant's turn.

        Raises:
            UserError: the template cannot be read, or fails.
        """
        return self._chat.render(messages, add_generation_prompt=add_generation_prompt)

    @cached_property
    def _chat(self) -> ChatTemplate:
        return ChatTemplate(self.template)


@contextmanager
def _failing(failure: str) -> Iterator[None]:
    """Turns what the tokenizers package raises, plain exceptions and Rust's panics, which are no Exception, into one line."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise UserError(f"{failure} ({str(error)[:200]}): {_ADVICE}") from None


def _read_backend(path: Path) -> tokenizers.Tokenizer:
    """The tokenizer of a file. Truncation and padding, which training scripts leave in it, are left out, as transformers does; so is dropout of merges, which
    would give the same text other ids each time.
    """
    require_regular_file(path, _ADVICE)
    if (size := path.stat().st_size) > MAX_JSON_BYTES:
        raise UserError(f"{path} has {size >> 20} MB, expected at most {MAX_JSON_BYTES >> 20}: {_ADVICE}")
    with _failing(f"{path} is not a tokenizer file"):
        backend = tokenizers.Tokenizer.from_file(str(path))
    for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        part = getattr(backend, name)
        if part is not None:
            _require_bounded(path, name, json.loads(part.__getstate__()))
    backend.no_truncation()
    backend.no_padding()
    if isinstance(backend.model, tokenizers.models.BPE):
        backend.model.dropout = None
    return backend


def _require_bounded(path: Path, part: str, description: Any) -> None:
    """Check that a part of a tokenizer takes time and memory in proportion to the text.

    Raises:
        UserError: it may not.
    """
    entries = [entry for entry in _objects(description)]
    steps = [str(entry["type"]) for entry in entries if "type" in entry]
    pattern = next((entry["Regex"] for entry in entries if "Regex" in entry and entry["Regex"] != QWEN_PATTERN), None)
    found = f"searches for {str(pattern)[:60]!r}" if pattern is not None else "replaces text" if "Replace" in steps else None
    if found is None and (len(steps) > MAX_STEPS or len(entries) > MAX_ENTRIES):
        found = f"has {len(steps)} steps and {len(entries)} entries"
    if found is not None:
        raise UserError(f"{path}: its {part} {found}, which no tokenizer of Qwen2.5 does and may take without bound: {_ADVICE}")


def _objects(value: Any) -> Iterator[Mapping[str, Any]]:
    """All objects in a JSON value."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _objects(inner)


def _read_template(root: Path, settings: Mapping[str, Any]) -> str:
    """The template, wherever transformers of different ages put it; the processor's own file comes first, as there."""
    if (path := root / "chat_template.jinja").is_file():
        with open(path, "rb") as file:
            content = file.read(4 * MAX_SOURCE)  # a longer one is refused by its characters
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 ({error}): {_ADVICE}") from None
    if (path := root / "chat_template.json").is_file():
        settings = read_json_object(path, _ADVICE)
    template = settings.get("chat_template")
    if not isinstance(template, str):
        raise UserError(f"{root} has no chat template: expected chat_template.jinja, or chat_template in tokenizer_config.json")
    return template
