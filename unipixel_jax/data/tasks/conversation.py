"""Turns of an annotation as the messages of a conversation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unipixel_jax.data.annotation import Turn
from unipixel_jax.processing.tokenizer import Message


def choose_turns(turns: Sequence[Turn], max_turns: int, rng: np.random.Generator) -> list[Turn]:
    """At most ``max_turns`` of the turns, in random order; a single turn is taken as it is and draws nothing."""
    if len(turns) == 1:
        return list(turns)
    return [turns[i] for i in rng.permutation(len(turns))[:max_turns]]


def conversation(pairs: Sequence[tuple[str, str]], media: str | None = "video") -> tuple[Message, ...]:
    """Questions and answers in order, the media in front of the first question.

    Args:
        pairs: each question with its answer.
        media: the kind of part that stands for the media, "video" or "image"; None for words alone.
    """
    messages: list[Message] = []
    for question, answer in pairs:
        content: object = question
        if media and not messages:
            content = [{"type": media}, {"type": "text", "text": question}]
        messages += [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    return tuple(messages)
