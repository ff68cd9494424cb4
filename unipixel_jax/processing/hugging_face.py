"""Reads tokenizers, and sets up the language of chat templates, with transformers.

transformers is imported when it is first needed, since its import takes a second. Files are checked before they come here, and nothing here asks the hub or
runs code of a checkpoint. ``AutoTokenizer`` is not used: for Qwen's models it ignores what tokenizer.json says about normalising and cutting words.
"""

from __future__ import annotations

import os
from pathlib import Path

import jinja2.sandbox
import tokenizers


def read_tokenizer(path: Path) -> tokenizers.Tokenizer:
    """The tokenizer that a ``tokenizer.json`` describes, with nothing changed."""
    _silence()
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_file=str(path)).backend_tokenizer


def read_qwen_tokenizer(directory: Path) -> tokenizers.Tokenizer:
    """Qwen's tokenizer with the ``vocab.json``, ``merges.txt`` and ``tokenizer_config.json`` of a directory."""
    _silence()
    from transformers import Qwen2TokenizerFast  # type: ignore[attr-defined]  # transformers 5 keeps this name for Qwen2Tokenizer

    return Qwen2TokenizerFast.from_pretrained(directory, local_files_only=True).backend_tokenizer


def template_environment() -> jinja2.sandbox.SandboxedEnvironment:
    """The sandbox for which chat templates are written, with transformers' functions, filters and block trimming."""
    _silence()
    from transformers.utils.chat_template_utils import _compile_jinja_template

    return _compile_jinja_template("").environment


def _silence() -> None:
    """Suppress the notice that PyTorch is not installed, since nothing here needs it."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
