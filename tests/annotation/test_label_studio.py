"""The Label Studio backend answers the requests that Label Studio documents, and bad ones with a reason in one line."""

import json
import math
from copy import deepcopy
from pathlib import Path

import annotation_tools as tools
import numpy as np
import pytest
from known_photo import CIRCLE, SQUARE, TRIANGLE, is_circle, is_square

from unipixel_jax.infer.exports.label_studio import brush_mask, brush_runs

CONFIG = (tools.FILES / "label_studio" / "labeling_config.xml").read_text(encoding="utf-8")
POLYGONS = CONFIG.replace("BrushLabels", "PolygonLabels")
ADDRESS = "/data/local-files/?d=photo.png"


@pytest.fixture(scope="module")
def post(annotator, tmp_path_factory):
    """A function that posts to ``/predict``; the photo is the only file that Label Studio's local storage holds."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("LABEL_STUDIO_URL", "LABEL_STUDIO_HOST", "LABEL_STUDIO_API_KEY", "HOSTNAME"):
            patch.delenv(name, raising=False)
        backend, send = tools.label_studio(tmp_path_factory.mktemp("label_studio"))
        patch.setattr(backend, "annotator", lambda: annotator)
        yield send


def request(*regions, config=CONFIG, data=None):
    """A request as Label Studio posts it while someone annotates, or without regions, when it wants predictions."""
    context = {"result": list(regions)} if regions else {}
    params = {"login": None, "password": None, "context": context}
    task = {"id": 7, "data": {"image": ADDRESS} if data is None else data, "predictions": [], "annotations": []}
    return {"tasks": [task], "model_version": "", "project": "1.1700000000", "label_config": config, "params": params}


def region(kind, label="square", **value):
    labels = {kind: [label]} if kind.endswith("labels") else {}
    names = {"keypointlabels": "point", "rectanglelabels": "box", "brushlabels": "brush", "textarea": "prompt"}
    common = {"id": "a1", "to_name": "image", "original_width": 320, "original_height": 320, "image_rotation": 0}
    return {"type": kind, "from_name": names.get(kind, "other"), "value": {**value, **labels}, **common}


def keypoint(place, positive=True, **more):
    return region("keypointlabels", x=place[0] / 3.2, y=place[1] / 3.2, width=0.5, **more) | {"is_positive": positive}


def answered(post, asked):
    """The only prediction of an answer, and the masks of its regions."""
    status, answer = post(asked)
    assert status == 200, answer
    (prediction,) = json.loads(json.dumps(answer))["results"]
    assert prediction["model_version"].startswith("unipixel-jax") and 0 <= prediction["score"] <= 1
    masks = []
    for item in prediction["result"]:
        assert (item["original_width"], item["original_height"], item["to_name"], item["from_name"]) == (320, 320, "image", "brush")
        assert 0 < item["score"] <= 1 and item["value"]["format"] == "rle"
        masks.append(brush_mask(item["value"]["rle"], (320, 320)))
    assert len({item["id"] for item in prediction["result"]}) == len(masks)
    return prediction, masks


def test_words_become_brush_regions_under_the_labels_that_they_name(post):
    prediction, masks = answered(post, request(region("textarea", text=["circle, the large blue square"])))
    assert is_circle(masks[0]) and is_square(masks[1]) and len(masks) == 2
    assert [item["value"]["brushlabels"] for item in prediction["result"]] == [["circle"], ["square"]]
    assert prediction["score"] == pytest.approx(np.mean([item["score"] for item in prediction["result"]]), abs=1e-6)


def test_keypoints_find_the_object_and_take_its_label(post):
    prediction, (mask,) = answered(post, request(keypoint(SQUARE), keypoint(TRIANGLE, positive=False, label="square")))
    assert is_square(mask) and prediction["result"][0]["value"]["brushlabels"] == ["square"]
    _, (other,) = answered(post, request(keypoint(CIRCLE, label="circle")))
    assert is_circle(other)


def test_keypoints_correct_what_words_find(post):
    words = region("textarea", text="large blue square")
    _, (before,) = answered(post, request(words))
    _, (after,) = answered(post, request(words, keypoint(SQUARE), keypoint((165, 190), positive=False)))
    assert is_square(before) and is_square(after) and (before != after).any()


def test_rectangles_and_strokes_are_taken(post):
    stroke = np.zeros((320, 320), bool)
    stroke[215:225, 100:150] = True
    _, (mask,) = answered(post, request(region("brushlabels", format="rle", rle=brush_runs(stroke))))
    assert is_square(mask)
    _, (boxed,) = answered(post, request(region("rectanglelabels", x=25, y=56, width=27, height=28, rotation=0)))
    assert boxed.any()


def test_without_a_context_a_task_is_asked_for_its_prompt_or_for_every_label(post):
    _, (mask,) = answered(post, request(data={"image": ADDRESS, "prompt": "Please segment the large blue square."}))
    assert is_square(mask)
    prediction, masks = answered(post, request(config=CONFIG.replace("triangle", "large blue square")))
    named = {item["value"]["brushlabels"][0]: mask for item, mask in zip(prediction["result"], masks, strict=True)}
    assert is_circle(named["circle"]) and is_square(named["large blue square"])


def test_polygons_are_per_cents_of_the_picture(post):
    status, answer = post(request(keypoint(SQUARE), config=POLYGONS))
    assert status == 200
    for item in answer["results"][0]["result"]:
        assert item["type"] == "polygonlabels" and item["value"]["polygonlabels"] == ["square"] and len(item["value"]["points"]) >= 3
        assert all(0 <= value <= 100 and math.isfinite(value) for point in item["value"]["points"] for value in point)


def test_tasks_are_answered_in_their_order(post):
    asked = request(data={"image": ADDRESS, "prompt": "circle"})
    asked["tasks"].append(deepcopy(asked["tasks"][0]) | {"data": {"image": ADDRESS, "prompt": "large blue square"}})
    status, answer = post(asked)
    assert status == 200
    first, second = (brush_mask(item["result"][0]["value"]["rle"], (320, 320)) for item in answer["results"])
    assert is_circle(first) and is_square(second)


WITHOUT = "<View><Image name='image' value='$image'/><Choices name='c' toName='image'><Choice value='a'/></Choices></View>"


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"tasks": None}, "the tasks are None, expected a list of tasks with data"),
        ({"tasks": [3]}, r"the tasks are \[3\]"),
        ({"tasks": [{"id": 1}]}, "expected a list of tasks with data"),
        ({"label_config": None, "project": "2.1700000000"}, "the request has no labelling configuration"),
        ({"label_config": WITHOUT}, "no BrushLabels or PolygonLabels of an Image"),
        (request(data={"picture": ADDRESS}), "the task has no picture under 'image'"),
        (request(data={"image": 3}), "the task has no picture under 'image'"),
        (request(data={"image": "/data/local-files/?d=none.png"}), "the picture '/data/local-files/.d=none.png' cannot be had|none.png does not exist"),
        (request(data={"image": "/data/local-files/?d=../../pyproject.toml"}), "cannot be had|does not exist"),
        (request(data={"image": str(Path(__file__))}), "cannot be had"),
        (request(region("textarea", text=[" "])), "nothing is asked for"),
        (request(region("keypointlabels", x="a", y=3)), "the keypoint's x, y is"),
        (request(region("keypointlabels", x=120, y=3)), "the point 384,9.6 lies outside the picture"),
        (request(region("rectanglelabels", x=1, y=2, width=3)), "the rectangle's x, y, width, height is"),
        (request(region("brushlabels", rle=[1, 2])), "the brush stroke"),
        (request(region("ellipselabels", x=1, y=2, radiusX=3, radiusY=4)), "a region of type 'ellipselabels': expected textarea"),
        (request("circle"), "the result of the context is"),
    ],
)
def test_bad_requests_get_one_line_and_no_traceback(asked, words, post):
    status, answer = post(request() | asked)
    assert status == 400, answer
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(answer["detail"])
    assert "\n" not in answer["detail"] and "Traceback" not in json.dumps(answer)
