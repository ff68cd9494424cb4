"""CVAT's serverless functions, called as nuclio calls them with the bodies that CVAT posts. They were not deployed."""

import base64
import json
from types import SimpleNamespace

import annotation_tools as tools
import numpy as np
import pytest
import yaml
from known_photo import CIRCLE, SQUARE, TRIANGLE, is_circle, is_square

from unipixel_jax.demo import ASSETS
from unipixel_jax.infer.annotating import Annotator

FOLDER = tools.FILES / "cvat"
PHOTO = base64.b64encode((ASSETS / "photo.png").read_bytes()).decode()
FILES = {"interactor": "function.yaml", "detector": "function-detector.yaml"}
FUNCTIONS = {kind: yaml.safe_load((FOLDER / name).read_text(encoding="utf-8")) for kind, name in FILES.items()}
LABELS = next(entry["value"] for entry in FUNCTIONS["detector"]["spec"]["env"] if entry["name"] == "UNIPIXEL_LABELS")


@pytest.fixture(scope="module")
def call(annotator):
    """A function that calls the handler with a body, and returns the status and the answer."""
    main, logged = tools.module("unipixel_cvat", FOLDER / "main.py"), []
    context = SimpleNamespace(
        user_data=SimpleNamespace(),
        logger=SimpleNamespace(info=logged.append, error=logged.append),
        Response=lambda body, headers, content_type, status_code: (status_code, content_type, body),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Annotator, "from_environment", lambda: annotator)
        patch.setenv("UNIPIXEL_LABELS", LABELS)
        main.init_context(context)

        def run(body):
            status, kind, text = main.handler(context, SimpleNamespace(body=body))
            assert kind == "application/json" and (status == 200 or logged[-1] == json.loads(text)["error"])
            return status, json.loads(text)

        yield run


def interaction(on=(), off=(), box=None, **more):
    return {"image": PHOTO, "pos_points": [list(place) for place in on], "neg_points": [list(place) for place in off], "obj_bbox": box, **more}


def whole(rows, bounds):
    """A mask within bounds as one of the picture, as CVAT's page lays it."""
    left, top, right, bottom = bounds
    mask = np.zeros((320, 320), bool)
    mask[top : bottom + 1, left : right + 1] = np.asarray(rows, bool)
    return mask


def test_the_interactor_answers_clicks_with_a_mask(call):
    status, answer = call(interaction([SQUARE], [TRIANGLE]))
    assert status == 200 and set(answer) == {"mask", "bounds"} and {value for row in answer["mask"] for value in row} <= {0, 1}
    assert is_square(whole(answer["mask"], answer["bounds"]))
    _, other = call(interaction([CIRCLE]))
    assert is_circle(whole(other["mask"], other["bounds"]))


def test_the_interactor_takes_a_box(call):
    status, answer = call(interaction(box=[[75, 180], [175, 270]]))
    assert status == 200 and whole(answer["mask"], answer["bounds"]).any()


def test_an_object_that_is_not_there_is_an_empty_mask(call, annotator, monkeypatch):
    monkeypatch.setattr(annotator, "find", lambda *_, **__: [])
    assert call(interaction([SQUARE])) == (200, {"mask": [[0]], "bounds": [0, 0, 0, 0]})


def test_the_detector_finds_its_labels(call, monkeypatch):
    monkeypatch.setenv("UNIPIXEL_LABELS", "circle, large blue square")
    status, answer = call({"image": PHOTO})
    assert status == 200
    found = {item["label"]: item for item in answer}
    for name, check in (("circle", is_circle), ("large blue square", is_square)):
        item = found[name]
        assert item["type"] == "mask" and 0 < float(item["confidence"]) <= 1 and len(item["points"]) % 2 == 0 and len(item["points"]) >= 6
        left, top, right, bottom = item["mask"][-4:]
        assert check(whole(np.reshape(item["mask"][:-4], (bottom - top + 1, right - left + 1)), item["mask"][-4:]))
    assert call({"image": PHOTO, "threshold": 1}) == (200, [])


def test_cvat_reads_the_masks_of_the_detector(call, monkeypatch):
    """CVAT makes runs of the pixels and puts the box behind them (cvat/apps/lambda_manager/views.py), which is what its library decodes."""
    from cvat_sdk.masks import decode_mask

    monkeypatch.setenv("UNIPIXEL_LABELS", "circle")
    _, (item,) = call({"image": PHOTO})
    pixels, box = np.asarray(item["mask"][:-4]), item["mask"][-4:]
    edges = np.flatnonzero(np.diff(pixels, prepend=0))
    runs = np.diff(edges, prepend=0, append=len(pixels)).tolist()
    assert is_circle(decode_mask([*runs, *box], image_width=320, image_height=320))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"text", "the body is a bytes, expected a JSON object"),
        ([], "the body is a list"),
        ({}, "image is 'None', expected a picture in base64"),
        ({"image": "####"}, "which is no base64"),
        ({"image": base64.b64encode(b"nothing").decode()}, "the picture"),
        ({"image": "/etc/hostname"}, "base64|the picture"),
        ({"image": "http://127.0.0.1/a.png"}, "which is no base64"),
        ({"image": PHOTO, "threshold": "high"}, "the threshold is"),
        (interaction(), "nothing is asked for"),
        (interaction([SQUARE]) | {"neg_points": 3}, "neg_points is 3, expected a list of points"),
        (interaction([SQUARE]) | {"pos_points": [[1, 2, 3]]}, "a point of pos_points is"),
        (interaction([(500, 3)]), "the point 500,3 lies outside"),
        (interaction(box=[1, 2, 3, 4]), "obj_bbox is"),
        (interaction(box=[[1, 2], [3]]), "a corner of obj_bbox is"),
        (interaction([SQUARE], image=""), "expected a picture in base64"),
    ],
)
def test_bad_bodies_get_the_status_400_and_one_line(body, words, call):
    status, answer = call(body)
    assert status == 400 and set(answer) == {"error"} and "\n" not in answer["error"]
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(answer["error"])


def test_a_detector_without_labels_says_so(call, monkeypatch):
    monkeypatch.setenv("UNIPIXEL_LABELS", " ")
    status, answer = call({"image": PHOTO})
    assert status == 400 and "UNIPIXEL_LABELS is empty" in answer["error"]


def test_the_functions_are_such_as_cvat_lists():
    for kind, function in FUNCTIONS.items():
        notes = function["metadata"]["annotations"]
        assert notes["type"] == kind and function["metadata"]["namespace"] == "cvat" and function["spec"]["handler"] == "main:handler"
        assert function["spec"]["triggers"]["http"]["attributes"]["maxRequestBodySize"] == 32 << 20
    assert FUNCTIONS["interactor"]["metadata"]["annotations"] | {"min_pos_points": 0, "min_neg_points": 0, "startswith_box_optional": True} == (
        FUNCTIONS["interactor"]["metadata"]["annotations"]
    )
    spec = json.loads(FUNCTIONS["detector"]["metadata"]["annotations"]["spec"])
    assert [label["name"] for label in spec] == [name.strip() for name in LABELS.split(",")] and {label["type"] for label in spec} == {"mask"}
    assert len({function["metadata"]["name"] for function in FUNCTIONS.values()}) == 2
