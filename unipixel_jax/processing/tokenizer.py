"""The text side of a checkpoint directory: tokenizer, special tokens and chat template.

The directory holds what transformers saves (``tokenizer.json``, ``tokenizer_config.json``, ``chat_template.jinja``). The files are read with the
``tokenizers`` and ``jinja2`` packages, on which transformers itself rests: the ids are the same and starting takes a tenth of the time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
import jinja2.sandbox
import numpy as np
import tokenizers
from numpy.typing import NDArray

from unipixel_jax.config import UniPixelConfig
from unipixel_jax.errors import UserError

REF_TOKEN = "<|ref|>"
SEG_TOKEN = "<|seg|>"
MEM_TOKEN = "<|mem|>"
VIDEO_TOKEN = "<|video_pad|>"
IMAGE_TOKEN = "<|image_pad|>"

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
        settings = _read_json(root / "tokenizer_config.json")
        path = root / "tokenizer.json"
        if not path.is_file():
            raise UserError(f"{path} is missing: copy the tokenizer files of the checkpoint into {root}")
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the package raises plain Exception
            raise UserError(f"{path} is not a tokenizer file ({error}): copy it again from the checkpoint") from error
        ids = {}
        for key in ("pad_token", "eos_token"):
            name = settings.get(key)
            name = name.get("content") if isinstance(name, dict) else name
            found = backend.token_to_id(name) if isinstance(name, str) else None
            if found is None:
                raise UserError(f"{root}: the {key} {name!r} of tokenizer_config.json is not in tokenizer.json; expected files of one checkpoint")
            ids[key] = found
        return cls(backend, _read_template(root, settings), ids["pad_token"], ids["eos_token"])

    def check(self, config: UniPixelConfig) -> None:
        """Compare the ids of the special tokens with those of the model.

        Raises:
            UserError: the tokenizer belongs to another checkpoint.
        """
        expected = {REF_TOKEN: config.ref_token_id, SEG_TOKEN: config.seg_token_id, MEM_TOKEN: config.mem_token_id, VIDEO_TOKEN: config.video_token_id}
        for token, number in expected.items():
            if (found := self.backend.token_to_id(token)) != number:
                raise UserError(f"the tokenizer gives {token} the id {found}, config.json {number}: the files are of different checkpoints")

    def encode(self, text: str) -> NDArray[np.int32]:
        """Token ids [L] of a text, special tokens written in it included."""
        return np.asarray(self.backend.encode(text).ids, np.int32)

    def encode_with_starts(self, text: str) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Token ids [L], and the index of each token's first character in the text [L]."""
        encoding = self.backend.encode(text)
        return np.asarray(encoding.ids, np.int32), np.asarray([start for start, _ in encoding.offsets], np.int32)

    def decode(self, ids: Sequence[int] | NDArray[np.integer]) -> str:
        """The text of token ids, special tokens included."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=False)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """The prompt that the chat template makes of a conversation.

        Args:
            messages: the turns in order.
            add_generation_prompt: end with the opening of the assistant's turn.
        """
        return self._compiled.render(messages=messages, add_generation_prompt=add_generation_prompt)

    @cached_property
    def _compiled(self) -> jinja2.Template:
        # The same block trimming and sandbox as transformers, since templates are written for them.
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        try:
            return environment.from_string(self.template)
        except jinja2.TemplateError as error:
            raise UserError(f"the chat template cannot be read ({error}): copy chat_template.jinja again from the checkpoint") from error


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path} is missing: copy the tokenizer files of the checkpoint into {path.parent}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): copy it again from the checkpoint") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, expected an object: copy it again from the checkpoint")
    return content


def _read_template(root: Path, settings: Mapping[str, Any]) -> str:
    """The template, wherever transformers of different ages put it; the processor's own file comes first, as there."""
    if (path := root / "chat_template.jinja").is_file():
        return path.read_text(encoding="utf-8")
    if (path := root / "chat_template.json").is_file():
        settings = _read_json(path)
    template = settings.get("chat_template")
    if not isinstance(template, str):
        raise UserError(f"{root} has no chat template: expected chat_template.jinja, or chat_template in tokenizer_config.json")
    return template
