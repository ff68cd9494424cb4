"""An answer as HTML: its words with the numbers of objects on their colours, where each object is, and what it cost. All text of others is escaped."""

from __future__ import annotations

import re
from html import escape

from unipixel_jax.app.worker import Figures, Result
from unipixel_jax.errors import one_line
from unipixel_jax.infer.prediction import Prediction, SegmentedObject
from unipixel_jax.infer.visualize import PALETTE

EMPTY = '<div class="ux-empty">The answer appears here.</div>'


def chip(number: int, name: str = "") -> str:
    """An object's number, and its name where it has one, on its colour."""
    colour = (number - 1) % len(PALETTE) + 1
    label = f"{number} {escape(name)}" if name else str(number)
    return f'<span class="ux-chip ux-object-{colour}">{label}</span>'


def words(prediction: Prediction, known: int = 0) -> str:
    """The answer's text, with a chip in place of each ``<|seg|>``, and of each number in brackets of an object that is known.

    Args:
        prediction: the answer.
        known: how many objects the words may speak of by numbers in brackets, which begin at 0.
    """
    pieces, done = [], 0
    for number, item in zip(prediction.numbers, prediction.objects, strict=True):
        if item.span is not None:
            pieces += [_bracketed(prediction.text[done : item.span[0]], known), chip(number)]
            done = item.span[1]
    return "".join([*pieces, _bracketed(prediction.text[done:], known)])


def _bracketed(text: str, known: int) -> str:
    parts = re.split(r"\[(\d{1,3})\]", text)
    out = [escape(parts[0])]
    for number, rest in zip(parts[1::2], parts[2::2], strict=True):
        out += [chip(int(number)) if int(number) < known else f"[{number}]", escape(rest)]
    return "".join(out)


def card(result: Result, note: str = "") -> str:
    """An answer, its objects and its figures.

    Args:
        result: the answer.
        note: a line to add, as text.
    """
    prediction = result.prediction
    rows = [
        f'<li>{chip(number)}<span>{_where(item)}{_asked(prediction, item)}</span></li>'
        for number, item in zip(prediction.numbers, prediction.objects, strict=True)
    ]
    if not prediction.objects:
        note = note or "Nothing is segmented: no such object is there, or the words do not ask for a mask."
    known = len(prediction.objects) if prediction.first == 0 else 0
    said = words(prediction, known) or "<em>no words</em>"
    listed = f'<ul class="ux-objects">{"".join(rows)}</ul>' if rows else ""
    noted = f'<p class="ux-note">{escape(note)}</p>' if note else ""
    return f'<div class="ux-card"><p class="ux-said">{said}</p>{listed}{noted}<p class="ux-figures">{figures(result.figures)}</p></div>'


def figures(cost: Figures) -> str:
    """Time, tokens and tokens a second as one line."""
    answering = cost.seconds if cost.answering is None else cost.answering
    parts = [f"{cost.seconds:.2f} s", f"{cost.tokens} tokens"]
    if cost.tokens:
        parts.append(f"{cost.tokens / max(answering, 1e-9):.1f} tokens/s" + (" with the masks" if cost.answering is None else ""))
    if cost.frames > 1 and cost.answering is not None:
        parts.append(f"{cost.frames / max(cost.seconds - cost.answering, 1e-9):.1f} frames/s")
    return " · ".join(parts)


def notice(text: str) -> str:
    """A line in place of an answer."""
    return f'<div class="ux-empty">{escape(text)}</div>'


def _asked(prediction: Prediction, item: SegmentedObject) -> str:
    return f" ({escape(one_line(prediction.prompts[item.prompt]))})" if len(prediction.prompts) > 1 else ""


def _where(item: SegmentedObject) -> str:
    seen, several = sum(1 for area in item.areas if area), len(item.areas) > 1
    if not seen:
        return "not to be seen"
    if several:
        return f"in {seen} of {len(item.areas)} frames, score {max(item.scores):.2f}"
    return f"{item.areas[0]:,} pixels, score {item.scores[0]:.2f}"
