"""A Label Studio ML backend: objects by words, keypoints, rectangles and brush strokes, as brush regions or polygons (docs/annotation.md).

Label Studio posts tasks with its labelling configuration, and, while someone annotates, what was typed or marked as ``context``. The contract is that of
label-studio-ml 2 (HumanSignal/label-studio-ml-backend, label_studio_ml/api.py and model.py).
"""

from __future__ import annotations

import functools
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from label_studio_ml.exceptions import AnswerException
from label_studio_ml.model import LabelStudioMLBase
from label_studio_ml.response import ModelResponse

from unipixel_jax.errors import UserError, one_line
from unipixel_jax.infer.annotating import Annotator, Region, label_for, numbers
from unipixel_jax.infer.exports.base import polygons
from unipixel_jax.infer.exports.label_studio import brush_mask, brush_region
from unipixel_jax.processing.media import Clip, read_media
from unipixel_jax.processing.prompts import Clicks

MODEL_VERSION = f"unipixel-jax {os.environ.get('UNIPIXEL_MODEL') or 'embedded'}"
OUTPUTS = ("BrushLabels", "PolygonLabels")
"""The tags to which results belong; the first that the labelling configuration has is taken."""


@functools.cache
def annotator() -> Annotator:
    """The model, which all requests share: Label Studio's server makes an object of the backend for each of them."""
    return Annotator.from_environment()


@dataclass
class Output:
    """The tag to which results belong.

    Attributes:
        kind: one of ``OUTPUTS``.
        control: its name.
        image: the name of the image's tag.
        key: under which of a task's data the image stands.
        labels: its labels.
    """

    kind: str
    control: str
    image: str
    key: str
    labels: Sequence[str]

    @classmethod
    def find(cls, config: Mapping[str, Any]) -> Output:
        """Find the tag in a labelling configuration that label-studio-ml has parsed.

        Raises:
            UserError: there is none.
        """
        for kind in OUTPUTS:
            for name, tag in config.items():
                if tag["type"] == kind and tag["inputs"] and tag["inputs"][0]["type"] == "Image":
                    return cls(kind, name, tag["to_name"][0], tag["inputs"][0]["value"], list(tag["labels"]))
        raise UserError(f"the labelling configuration has no {' or '.join(OUTPUTS)} of an Image: add one, as labeling_config.xml has it")


@dataclass
class Asked:
    """A user's input in the labelling page: words, the points, box and stroke that mark one object, and the label that was chosen for it."""

    text: str = ""
    on: list[tuple[float, float]] = field(default_factory=list)
    off: list[tuple[float, float]] = field(default_factory=list)
    box: tuple[float, float, float, float] | None = None
    brush: Any = None
    label: str = ""

    @classmethod
    def read(cls, regions: Any, size: tuple[int, int]) -> Asked:
        """Read the regions of a context, whose places are per cents of the picture's size (height, width).

        Raises:
            UserError: they are no regions, or of an unknown kind.
        """
        if not isinstance(regions, list) or not all(isinstance(region, dict) and isinstance(region.get("value"), dict) for region in regions):
            raise UserError(f"the result of the context is {str(regions)[:60]}, expected a list of regions with values")
        asked = cls()
        for region in regions:
            asked._add(region, str(region.get("type", "")), region["value"], size)
        return asked

    def _add(self, region: Mapping[str, Any], kind: str, value: Mapping[str, Any], size: tuple[int, int]) -> None:
        height, width = size
        tool = kind.removesuffix("labels")
        labels = value.get(kind) or value.get("labels") or [""]
        self.label = str(labels[0]) if kind.endswith("labels") else self.label
        if tool == "textarea":
            texts = value.get("text", "")
            self.text = str(texts[-1] if isinstance(texts, list) and texts else texts)
        elif tool == "keypoint":
            x, y = numbers([value.get("x"), value.get("y")], 2, "the keypoint's x, y")
            (self.on if region.get("is_positive", True) else self.off).append((x * width / 100, y * height / 100))
        elif tool == "rectangle":
            x, y, w, h = numbers([value.get(key) for key in ("x", "y", "width", "height")], 4, "the rectangle's x, y, width, height")
            self.box = (x * width / 100, y * height / 100, (x + w) * width / 100, (y + h) * height / 100)
        elif tool == "brush":
            self.brush = brush_mask(value.get("rle"), size)
        else:
            raise UserError(f"a region of type {kind!r}: expected textarea, keypointlabels, rectanglelabels or brushlabels")

    @property
    def clicks(self) -> Clicks:
        """The marks, without the words."""
        return Clicks(self.on, self.off, self.box, self.brush)


class UniPixelBackend(LabelStudioMLBase):
    """Answers ``/predict``. Without a context, a task is asked for ``prompt`` of its data, or else for every label of the configuration."""

    def setup(self) -> None:
        """Name the model in predictions."""
        self.set("model_version", MODEL_VERSION)

    def predict(self, tasks: list[dict[str, Any]], context: dict[str, Any] | None = None, **kwargs: Any) -> ModelResponse:
        """Predict regions for tasks; see ``LabelStudioMLBase.predict``."""
        try:
            if not isinstance(tasks, list) or not all(isinstance(task, dict) and isinstance(task.get("data"), dict) for task in tasks):
                raise UserError(f"the tasks are {str(tasks)[:60]}, expected a list of tasks with data")
            if not self.has("parsed_label_config"):
                raise UserError("the request has no labelling configuration: expected label_config")
            output = Output.find(self.parsed_label_config)
            return ModelResponse(predictions=[self._predict(task, output, (context or {}).get("result")) for task in tasks])
        except UserError as error:
            # The server would add the traceback to the answer if there were no such key.
            raise AnswerException(400, one_line(str(error)), {"traceback": ""}) from None

    def _predict(self, task: Mapping[str, Any], output: Output, regions: Any) -> dict[str, Any]:
        clip = self._picture(task, output.key)
        size = (clip.frames.shape[1], clip.frames.shape[2])
        asked = Asked.read(regions, size) if regions else Asked(str(task["data"].get("prompt") or ", ".join(output.labels)))
        found = annotator().find(clip, asked.text, asked.clicks)
        result = [part for region in found for part in _regions(region, output, asked.label)]
        score = sum(region.score for region in found) / max(1, len(found))
        return {"result": result, "score": round(score, 6), "model_version": MODEL_VERSION}

    def _picture(self, task: Mapping[str, Any], key: str) -> Clip:
        """The picture of a task, which Label Studio's SDK finds and downloads; no path or address of a request is opened in another way."""
        address = task["data"].get(key)
        if not isinstance(address, str) or not address:
            raise UserError(f"the task has no picture under {key!r}: expected its address, as Label Studio gives it")
        try:
            path = self.get_local_path(address, task_id=task.get("id"))
        except Exception as error:  # of the network, of a server, or of settings
            raise UserError(f"the picture {address!r} cannot be had ({type(error).__name__}: {error})") from None
        return read_media(path, 1)


def _regions(region: Region, output: Output, chosen: str) -> list[dict[str, Any]]:
    """An object as regions of the output's tag; as polygons, one for each of its parts."""
    label = chosen if chosen in output.labels else label_for(region.label, output.labels)
    if output.kind == "BrushLabels":
        return [brush_region(region.mask, label, region.score, region=uuid.uuid4().hex[:10], control=output.control, image=output.image)]
    height, width = region.mask.shape
    common = {"from_name": output.control, "to_name": output.image, "type": "polygonlabels", "image_rotation": 0, "score": round(region.score, 6)}
    common |= {"original_width": width, "original_height": height}
    return [
        {"id": uuid.uuid4().hex[:10], "value": {"points": (corners * [100 / width, 100 / height]).tolist(), "polygonlabels": [label], "closed": True}, **common}
        for corners in polygons(region.mask)
    ]
