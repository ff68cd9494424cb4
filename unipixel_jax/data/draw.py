"""Draws a sample from an annotation, whatever its task."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from unipixel_jax.data.annotation import Annotation, DrawOptions, Example, Task, require_text
from unipixel_jax.data.synthetic import task
from unipixel_jax.data.tasks import memory, multimodal, referring, region, segmentation

_TASKS: Mapping[Task, Callable[[Annotation, DrawOptions, np.random.Generator], Example]] = {
    "segmentation": segmentation.draw,
    "referring": referring.draw,
    "region": region.draw,
    "memory": memory.draw,
    "multimodal": multimodal.draw,
    "shapes": task.draw,
}


def draw(annotation: Annotation, options: DrawOptions, rng: np.random.Generator) -> Example:
    """Decide everything random of a sample, and read its pixels and masks.

    Args:
        annotation: from a source.
        options: how to draw.
        rng: random numbers; the same ones give the same example.

    Raises:
        UserError: a file is missing or broken, the words are no text, or the sample is not one to learn from, such as an object that no drawn frame shows.
    """
    require_text(annotation)
    return _TASKS[annotation.task](annotation, options, rng)
