"""What a command prints of an answer."""

from __future__ import annotations

import sys

from unipixel_jax.errors import one_line
from unipixel_jax.infer.prediction import Prediction, SegmentedObject
from unipixel_jax.infer.visualize import color_label, format_answer


def print_prediction(prediction: Prediction) -> None:
    """Print the answer and where each object is; and on the standard error, for each prompt whose object is not there, that it is not."""
    colour = sys.stdout.isatty()
    print(format_answer(prediction, colour))
    for number, item in zip(prediction.numbers, prediction.objects, strict=True):
        asked = f" ({one_line(prediction.prompts[item.prompt])})" if len(prediction.prompts) > 1 else ""
        print(f"{color_label(number, colour)} {_where(item)}{asked}")
    for index, words in enumerate(prediction.prompts):
        own = [item for item in prediction.objects if item.prompt == index]
        if not own:
            print(nothing_segmented(words), file=sys.stderr)
        elif not any(item.found for item in own):
            print(f'no such object: what "{one_line(words)}" asks for is not to be seen', file=sys.stderr)


def nothing_segmented(prompt: str) -> str:
    """Say that the answer to a prompt segments nothing."""
    return f'no such object: the answer to "{one_line(prompt)}" segments nothing; it is not there, or the prompt does not ask for a mask'


def _where(item: SegmentedObject) -> str:
    seen, several = sum(1 for area in item.areas if area), len(item.areas) > 1
    if not seen:
        presence = f"present with at most {max(item.presence, default=0):.2f}"
        return f"nowhere to be seen in {len(item.areas)} frames, {presence}" if several else f"not to be seen, {presence}"
    score = f", score {max(item.scores):.2f}"
    return f"in {seen} of {len(item.areas)} frames{score}" if several else f"{item.areas[0]} pixels, box {item.boxes[0]}{score}"
