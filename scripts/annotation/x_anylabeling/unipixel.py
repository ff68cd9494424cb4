"""A model of X-AnyLabeling-Server: objects by words, points and rectangles, as polygons or rectangles (docs/annotation.md).

It belongs into ``app/models`` of the server, and unipixel.yaml into ``configs/auto_labeling``. The contract is that of the server's ``BaseModel`` and ``Shape``
(CVHub520/X-AnyLabeling-Server, app/models/__init__.py and app/schemas/shape.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from app.core.registry import register_model
from app.schemas.shape import Shape

from unipixel_jax.errors import UserError
from unipixel_jax.infer.annotating import Annotator, Region, numbers
from unipixel_jax.infer.exports.base import polygons
from unipixel_jax.infer.prediction import box_of
from unipixel_jax.processing.prompts import Clicks

from . import BaseModel

UNNAMED = "AUTOLABEL_OBJECT"
"""The label of an object that was clicked; X-AnyLabeling asks for its name when it is finished."""


@register_model("unipixel")
class UniPixelModel(BaseModel):
    """UniPixel. Its ``params`` are ``model`` and ``dtype``, and defaults of a request's ``show_masks``, ``show_boxes``, ``conf_threshold`` and
    ``epsilon_factor``.
    """

    def load(self) -> None:
        """Load the weights."""
        self._annotator = Annotator.from_settings(self.params)

    def predict(self, image: np.ndarray, params: dict[str, Any]) -> dict[str, Any]:
        """Find objects.

        Args:
            image: BGR [H, W, 3], uint8.
            params: ``text_prompt``, words; ``marks``, points [x, y] with the label 1 or 0 and rectangles [x0, y0, x1, y1]; and what replaces the model's own
                ``params``. Several rectangles are several objects.

        Raises:
            UserError: a mark is none, or nothing is asked for; the server answers with its message.
        """
        text, marks = params.get("text_prompt") or "", params.get("marks") or []
        if not isinstance(text, str) or not isinstance(marks, list):
            raise UserError("expected text_prompt as a text and marks as a list")
        asked = _clicks(marks) or [Clicks()]
        if text.strip() and len(asked) > 1:
            raise UserError(f"words with {len(asked)} rectangles: one corrects an object of the words; send the words or the others alone")
        pixels = np.ascontiguousarray(image[..., ::-1])
        regions = [region for clicks in asked for region in self._annotator.find(pixels, text, clicks)]
        settings = {**self.params, **params}
        (least,) = numbers([settings.get("conf_threshold", 0)], 1, "conf_threshold")
        shapes = [
            shape
            for number, region in enumerate((region for region in regions if region.score >= least), start=1)
            for shape in _shapes(region, number, settings)
        ]
        return {"shapes": shapes, "description": "", "replace": False} if marks else {"shapes": shapes, "description": ""}

    def unload(self) -> None:
        """Let go of the weights."""
        del self._annotator


def _clicks(marks: list[Any]) -> list[Clicks]:
    """One object for each rectangle, with the points on and beside it; or one for the points."""
    on, off, boxes = [], [], []
    for mark in marks:
        kind = mark.get("type") if isinstance(mark, dict) else None
        if kind == "point":
            x, y = numbers(mark.get("data"), 2, "the point")
            (on if mark.get("label", 1) else off).append((x, y))
        elif kind == "rectangle" and mark.get("label", 1) != 0:
            x0, y0, x1, y1 = numbers(mark.get("data"), 4, "the rectangle")
            boxes.append((x0, y0, x1, y1))
        else:
            raise UserError(f"the mark {str(mark)[:60]}, expected a point, or a rectangle around an object")
    return [Clicks(on, off, box) for box in boxes] or ([Clicks(on, off)] if on or off else [])


def _shapes(region: Region, number: int, settings: Mapping[str, Any]) -> list[Shape]:
    """An object's outlines, which share its number as their group where there are several, and its rectangle."""
    common = {"label": region.label or UNNAMED, "score": min(1.0, max(0.0, region.score))}
    shapes = []
    if settings.get("show_masks", True):
        (share,) = numbers([settings.get("epsilon_factor", 0.001)], 1, "epsilon_factor")
        parts = [_simplified(corners, share) for corners in polygons(region.mask)]
        group = number if len(parts) > 1 else None
        shapes += [Shape(shape_type="polygon", points=[*part, part[0]], group_id=group, **common) for part in parts]
    box = box_of(region.mask)
    if settings.get("show_boxes", False) and box is not None:
        x, y, width, height = map(float, box)
        shapes.append(Shape(shape_type="rectangle", points=[[x, y], [x + width, y], [x + width, y + height], [x, y + height]], **common))
    return shapes


def _simplified(corners: np.ndarray, share: float) -> list[list[float]]:
    """An outline with fewer corners, off by at most a share of its length; the server's slider for the fineness of masks sets the share."""
    outline = corners.astype(np.float32)
    fewer = cv2.approxPolyDP(outline, share * cv2.arcLength(outline, True), True).reshape(-1, 2)
    return (fewer if len(fewer) >= 3 else outline).tolist()
