"""A serverless function of CVAT: an interactor, which answers clicks and boxes, and a detector, which finds the labels of its function.yaml by words.

CVAT posts ``{"image": BASE64, "pos_points": [[x, y]], "neg_points": [[x, y]], "obj_bbox": [[x, y], [x, y]] or null}`` to an interactor, which answers with a
mask, and ``{"image": BASE64, "threshold": NUMBER}`` to a detector, which answers with a list of objects. Source: cvat/apps/lambda_manager/views.py.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Mapping
from typing import Any

from unipixel_jax.errors import UserError, one_line
from unipixel_jax.infer.annotating import Annotator, Region, numbers
from unipixel_jax.infer.exports.base import polygons
from unipixel_jax.infer.prediction import box_of
from unipixel_jax.processing.images import Content
from unipixel_jax.processing.prompts import Clicks

MAX_BYTES = 32 << 20
"""The largest body of a request, which function.yaml has too."""
INTERACTION = ("pos_points", "neg_points", "obj_bbox")


def init_context(context: Any) -> None:
    """Load the model, before the first request."""
    context.user_data.annotator = Annotator.from_environment()
    context.logger.info("the model is loaded")


def handler(context: Any, event: Any) -> Any:
    """Answer a request; a bad one with the status 400 and its reason."""
    annotator = context.user_data.annotator
    try:
        body = event.body
        if not isinstance(body, dict):
            raise UserError(f"the body is a {type(body).__name__}, expected a JSON object")
        answer = _interact(annotator, body) if body.keys() & set(INTERACTION) else _detect(annotator, body)
        status = 200
    except UserError as error:
        answer, status = {"error": one_line(str(error))}, 400
        context.logger.error(answer["error"])
    return context.Response(body=json.dumps(answer), headers={}, content_type="application/json", status_code=status)


def _interact(annotator: Annotator, body: Mapping[str, Any]) -> dict[str, Any]:
    """The mask of what was clicked: rows of 0 and 1 within ``bounds``, which are the numbers of the first and last column and row that it has."""
    box = body.get("obj_bbox")
    if box is not None:
        if not isinstance(box, list) or len(box) != 2:
            raise UserError(f"obj_bbox is {str(box)[:60]}, expected two points")
        (x0, y0), (x1, y1) = (numbers(corner, 2, "a corner of obj_bbox") for corner in box)
        box = (x0, y0, x1, y1)
    on, off = ([(x, y) for x, y in (numbers(point, 2, f"a point of {name}") for point in _list(body, name))] for name in INTERACTION[:2])
    found = annotator.find(_image(body), clicks=Clicks(on, off, box))
    if not found:
        return {"mask": [[0]], "bounds": [0, 0, 0, 0]}
    mask, bounds = _cut(found[0])
    return {"mask": mask, "bounds": bounds}


def _detect(annotator: Annotator, body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The objects that the labels in ``UNIPIXEL_LABELS`` name, with masks as CVAT takes them of detectors: pixels of the box, row by row, and the box."""
    labels = os.environ.get("UNIPIXEL_LABELS", "")
    least = body.get("threshold") or 0
    (least,) = numbers([least], 1, "the threshold")
    if not labels.strip():
        raise UserError("the variable UNIPIXEL_LABELS is empty: name what to find in function-detector.yaml, separated by commas")
    out = []
    for region in annotator.find(_image(body), labels):
        if region.score < least:
            continue
        rows, bounds = _cut(region)
        outline = max(polygons(region.mask), key=len)
        out.append(
            {
                "label": region.label,
                "confidence": f"{region.score:.4f}",
                "type": "mask",
                "mask": [pixel for row in rows for pixel in row] + bounds,
                "points": outline.ravel().tolist(),
            }
        )
    return out


def _cut(region: Region) -> tuple[list[list[int]], list[int]]:
    """The rows of a mask within its box, as 0 and 1, and the box: left, top, and the last column and row."""
    box = box_of(region.mask)
    assert box is not None
    x, y, width, height = box
    return region.mask[y : y + height, x : x + width].astype(int).tolist(), [x, y, x + width - 1, y + height - 1]


def _image(body: Mapping[str, Any]) -> Content:
    text = body.get("image")
    if not isinstance(text, str) or not 0 < len(text) <= MAX_BYTES:
        raise UserError(f"image is {str(text)[:20]!r}, expected a picture in base64 of at most {MAX_BYTES:,} characters")
    try:
        return Content("the picture", base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError):
        raise UserError(f"image is {text[:20]!r}..., which is no base64") from None


def _list(body: Mapping[str, Any], name: str) -> list[Any]:
    value = body.get(name) or []
    if not isinstance(value, list):
        raise UserError(f"{name} is {str(value)[:60]}, expected a list of points [x, y]")
    return value
