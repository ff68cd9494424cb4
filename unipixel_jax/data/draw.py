"""Draws a sample from an annotation, whatever its task."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from unipixel_jax.data.annotation import Annotation, DrawOptions, Example, Task, require_text
from unipixel_jax.data.synthetic import task
from unipixel_jax.data.tasks import memory, multimodal, referring, region, segmentation
from unipixel_jax.data.templates import OWN, Templates

_ASKED: Mapping[Task, Callable[[Annotation, DrawOptions, np.random.Generator, Templates], Example]] = {
    "segmentation": segmentation.draw,
    "referring": referring.draw,
    "region": region.draw,
    "memory": memory.draw,
}
"""The tasks whose questions are drawn from templates."""
_TOLD: Mapping[Task, Callable[[Annotation, DrawOptions, np.random.Generator], Example]] = {"multimodal": multimodal.draw, "shapes": task.draw}
"""The tasks whose samples come with their questions."""


def draw(annotation: Annotation, options: DrawOptions, rng: np.random.Generator, templates: Templates = OWN) -> Example:
    """Decide everything random of a sample, and read its pixels and masks.

    Args:
        annotation: from a source.
        options: how to draw.
        rng: random numbers; the same ones give the same example.
        templates: the sentences with which samples ask and answer.

    Raises:
        UserError: a file is missing or broken, the words are no text, or the sample is not one to learn from, such as an object that no drawn frame shows.
    """
    require_text(annotation)
    if annotation.task in _TOLD:
        return _TOLD[annotation.task](annotation, options, rng)
    return _ASKED[annotation.task](annotation, options, rng, templates)
