"""The text side of a checkpoint directory: tokenizer, special tokens and chat template.

The directory holds what transformers saves: ``tokenizer.json``, or ``vocab.json`` and ``merges.txt``; ``tokenizer_config.json``; ``chat_template.jinja``.
Everything that is read is checked first and then read by transformers (processing/hugging_face.py), which is imported when a directory is read.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from unipixel_jax.config import UniPixelConfig
from unipixel_jax.core.files import MAX_JSON_BYTES, read_json_object, require_regular_file
from unipixel_jax.errors import UserError

if TYPE_CHECKING:
    from unipixel_jax.processing.template import ChatTemplate

REF_TOKEN = "<|ref|>"
SEG_TOKEN = "<|seg|>"
MEM_TOKEN = "<|mem|>"
VIDEO_TOKEN = "<|video_pad|>"
IMAGE_TOKEN = "<|image_pad|>"

QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The pattern by which Qwen2.5's tokenizer cuts words (transformers' ``Qwen2Tokenizer``). Others may take hours for a line of text, or end the process."""

MAX_TEMPLATE_BYTES = 1 << 20
"""The most bytes of a chat template that are read."""
MAX_STEPS, MAX_ENTRIES = 8, 64
"""The most steps of one part of a tokenizer, and the most objects in their description. A step may double a text, or repeat it as often as it lists it."""

_ADVICE = "copy it again from the checkpoint"

Message = Mapping[str, Any]
"""One turn: ``{"role": "user" | "assistant" | "system", "content": text, or a list of {"type": "video"} and {"type": "text", "text": ...}}``."""


@dataclass(frozen=True)
class Tokenizer:
    """Text to token ids and back.

    Attributes:
        backend: the fast tokenizer.
        template: the source of the chat template, in Jinja.
        pad_id: the id that fills up short prompts.
        eos_id: the id that ends an answer (``<|im_end|>``).
    """

    backend: tokenizers.Tokenizer
    template: str
    pad_id: int
    eos_id: int

    @classmethod
    def from_directory(cls, directory: str | Path) -> Tokenizer:
        """Read the tokenizer files of a checkpoint directory.

        Where there is no ``tokenizer.json``, ``vocab.json`` and ``merges.txt`` are taken for those of Qwen's tokenizer.

        Raises:
            UserError: a file is missing or cannot be read, or names a token that the tokenizer does not have.
        """
        root = Path(directory)
        settings = read_json_object(root / "tokenizer_config.json", _ADVICE)
        backend = _read_backend(root, settings)
        ids = {}
        for key in ("pad_token", "eos_token"):
            name = _token_name(settings, key)
            found = backend.token_to_id(name) if isinstance(name, str) else None
            if found is None:
                raise UserError(f"{root}: the {key} {str(name)[:60]!r} of tokenizer_config.json is no token of the tokenizer; expected files of one checkpoint")
            ids[key] = found
        return cls(backend, _read_template(root, settings), ids["pad_token"], ids["eos_token"])

    @classmethod
    def from_file(cls, path: Path, pad_id: int, eos_id: int) -> Tokenizer:
        """Read a ``tokenizer.json`` alone, without transformers; the result has no chat template.

        Raises:
            UserError: it is missing, or no tokenizer file.
        """
        _require_sound(path)
        with _failing(f"{path} is not a tokenizer file"):
            return cls(tokenizers.Tokenizer.from_file(str(path)), "", pad_id, eos_id)

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
        """The token ids of a text, special tokens written in it included [L], int32.

        Raises:
            UserError: the tokenizer fails on this text.
        """
        with _failing("the tokenizer cannot encode this text"):
            return np.asarray(self.backend.encode(text).ids, np.int32)

    def encode_with_starts(self, text: str) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The token ids of a text [L], int32, and the index of each token's first character in it [L], int32.

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
        from unipixel_jax.processing.template import ChatTemplate

        return ChatTemplate(self.template)


@contextmanager
def _failing(failure: str) -> Iterator[None]:
    """Turn what the tokenizers package raises into one line: plain exceptions, and Rust's panics, which are no ``Exception``."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise UserError(f"{failure} ({str(error)[:200]}): {_ADVICE}") from None


def _read_backend(root: Path, settings: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """The tokenizer of a directory. Truncation and padding, which training scripts leave in it, are turned off, as in transformers. Dropout of merges is
    turned off too, since it would give the same text other ids each time.
    """
    path = root / "tokenizer.json"
    if not path.exists() and (root / "vocab.json").is_file():
        backend = _read_vocabulary(root, settings)
    else:
        _require_sound(path)
        from unipixel_jax.processing.hugging_face import read_tokenizer

        with _failing(f"{path} is not a tokenizer file"):
            backend = read_tokenizer(path)
    backend.no_truncation()
    backend.no_padding()
    if isinstance(backend.model, tokenizers.models.BPE):
        backend.model.dropout = None
    return backend


def _read_vocabulary(root: Path, settings: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Qwen's tokenizer from the files that stand for a tokenizer.json in older directories."""
    from unipixel_jax.processing.hugging_face import read_qwen_tokenizer

    for name in ("vocab.json", "merges.txt"):
        _require_small(root / name)
    added = settings.get("added_tokens_decoder")
    if added is None:
        flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
        found = read_json_object(root / "added_tokens.json", _ADVICE)
        added = {str(number): {"content": token, **flags} for token, number in found.items()}
    own = {"added_tokens_decoder": added, "unk_token": None, **{key: _token_name(settings, key) for key in ("pad_token", "eos_token")}}
    with TemporaryDirectory(prefix="unipixel-jax-tokenizer-") as folder, _failing(f"{root} holds no vocabulary of Qwen's tokenizer"):
        for name in ("vocab.json", "merges.txt"):
            shutil.copyfile(root / name, Path(folder, name))
        Path(folder, "tokenizer_config.json").write_text(json.dumps(own), encoding="utf-8")
        backend = read_qwen_tokenizer(Path(folder))
        numbers = {token["content"]: int(number) for number, token in added.items()}
    for token, number in numbers.items():
        if (given := backend.token_to_id(token)) != number:
            raise UserError(f"{root}: {str(token)[:60]!r} would get the id {given} after vocab.json, expected {number}: {_ADVICE}")
    return backend


def _token_name(settings: Mapping[str, Any], key: str) -> Any:
    """The text of a token that tokenizer_config.json names, by itself or with its flags."""
    name = settings.get(key)
    return name.get("content") if isinstance(name, dict) else name


def _require_small(path: Path) -> None:
    require_regular_file(path, _ADVICE)
    if (size := path.stat().st_size) > MAX_JSON_BYTES:
        raise UserError(f"{path} has {size >> 20} MB, expected at most {MAX_JSON_BYTES >> 20}: {_ADVICE}")


def _require_sound(path: Path) -> None:
    """Check a tokenizer.json by its parts, without its words: to read it as a whole is to apply the normaliser to them.

    Raises:
        UserError: it is no such file, or may take without bound.
    """
    _require_small(path)
    parts = read_json_object(path, _ADVICE) | {"added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}
    with _failing(f"{path} is not a tokenizer file"):
        backend = tokenizers.Tokenizer.from_str(json.dumps(parts))
    for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        part = getattr(backend, name)
        if part is not None:
            _require_bounded(path, name, json.loads(part.__getstate__()))


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
    """The template, from any of the files in which versions of transformers store it; as in transformers, a file of its own comes first."""
    if (path := root / "chat_template.jinja").is_file():
        with open(path, "rb") as file:
            content = file.read(MAX_TEMPLATE_BYTES)  # a longer one is refused by its characters (template.py)
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
