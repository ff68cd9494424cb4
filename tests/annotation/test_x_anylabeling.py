"""The model of X-AnyLabeling-Server answers the client's requests with shapes that the server's schema takes."""

import annotation_tools as tools
import cv2
import numpy as np
import pytest
import yaml
from known_photo import CIRCLE, SQUARE, TRIANGLE, is_circle, is_square

from unipixel_jax.errors import UserError
from unipixel_jax.infer.annotating import Annotator, Region

CONFIG = yaml.safe_load((tools.FILES / "x_anylabeling" / "unipixel.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def model(annotator):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Annotator, "from_settings", lambda settings: annotator)
        made = tools.x_anylabeling()(CONFIG)
        made.load()
        yield made
        made.unload()


@pytest.fixture
def image(photo):
    """The photo as the server gives it: BGR."""
    return photo[..., ::-1]


def point(place, label=1):
    return {"type": "point", "label": label, "data": list(place)}


def drawn(shapes):
    mask = np.zeros((320, 320), np.uint8)
    for shape in shapes:
        assert shape.points[0] == shape.points[-1] and len(shape.points) >= 4
        cv2.fillPoly(mask, [np.asarray(shape.points, np.float64).astype(np.int32)], 1)
    return mask.astype(bool)


def test_words_become_polygons_with_the_words_as_labels(model, image):
    answer = model.predict(image, {"text_prompt": "circle, large blue square"})
    assert set(answer) == {"shapes", "description"}
    by_label = {label: [shape for shape in answer["shapes"] if shape.label == label] for label in ("circle", "large blue square")}
    assert is_circle(drawn(by_label["circle"])) and is_square(drawn(by_label["large blue square"]))
    assert all(shape.shape_type == "polygon" and 0 < shape.score <= 1 for shape in answer["shapes"])


def test_points_find_one_object_without_a_name(model, image):
    answer = model.predict(image, {"marks": [point(SQUARE), point(TRIANGLE, 0)]})
    assert is_square(drawn(answer["shapes"])) and answer["replace"] is False
    assert {shape.label for shape in answer["shapes"]} == {"AUTOLABEL_OBJECT"}
    assert is_circle(drawn(model.predict(image, {"marks": [point(CIRCLE)]})["shapes"]))


def test_each_rectangle_is_an_object(model, image, monkeypatch):
    asked = []
    monkeypatch.setattr(model._annotator, "find", lambda pixels, text, clicks: asked.append(clicks) or [])
    marks = [{"type": "rectangle", "label": 1, "data": [10, 20, 30, 40]}, {"type": "rectangle", "data": [50, 60, 70, 80]}, point(SQUARE)]
    assert model.predict(image, {"marks": marks})["shapes"] == []
    assert [clicks.box for clicks in asked] == [(10, 20, 30, 40), (50, 60, 70, 80)] and all(clicks.on == [SQUARE] for clicks in asked)


def test_points_correct_an_object_of_the_words(model, image):
    answer = model.predict(image, {"text_prompt": "circle, large blue square", "marks": [point(SQUARE)]})
    assert {shape.label for shape in answer["shapes"]} == {"circle", "large blue square"}


def test_parts_of_an_object_share_a_group_and_settings_choose_the_shapes(model, image, monkeypatch):
    mask = np.zeros((320, 320), bool)
    mask[10:60, 20:90] = mask[100:160, 30:50] = True
    faint = np.zeros((320, 320), bool)
    faint[200:220, 200:220] = True
    monkeypatch.setattr(model._annotator, "find", lambda *_: [Region("cat", mask, 0.9), Region("dog", faint, 0.3)])
    shapes = model.predict(image, {"text_prompt": "cat, dog"})["shapes"]
    assert [(shape.label, shape.group_id) for shape in shapes] == [("cat", 1), ("cat", 1), ("dog", None)]
    np.testing.assert_array_equal(drawn(shapes[:2]), mask)
    boxes = model.predict(image, {"text_prompt": "x", "show_masks": False, "show_boxes": True, "conf_threshold": 0.5})["shapes"]
    assert [(shape.shape_type, shape.points) for shape in boxes] == [("rectangle", [[20.0, 10.0], [90.0, 10.0], [90.0, 160.0], [20.0, 160.0]])]


def test_outlines_get_coarser_with_the_slider(model, image):
    fine, coarse = (model.predict(image, {"marks": [point(CIRCLE)], "epsilon_factor": share})["shapes"] for share in (0.001, 0.02))
    assert max(len(shape.points) for shape in fine) > max(len(shape.points) for shape in coarse) >= 4


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({}, "nothing is asked for"),
        ({"text_prompt": 3}, "expected text_prompt as a text and marks as a list"),
        ({"marks": {}, "text_prompt": "  "}, "nothing is asked for"),
        ({"marks": {"type": "point"}}, "expected text_prompt as a text and marks as a list"),
        ({"marks": ["point"]}, "the mark point, expected a point, or a rectangle"),
        ({"marks": [{"type": "point", "data": [1]}]}, r"the point is \[1\], expected 2 finite numbers"),
        ({"marks": [point((999, 5))]}, "the point 999,5 lies outside the picture"),
        ({"marks": [{"type": "rectangle", "label": 0, "data": [1, 2, 3, 4]}]}, "expected a point, or a rectangle around an object"),
        ({"marks": [{"type": "rectangle", "data": [1, 2, 3, None]}]}, "the rectangle is"),
        ({"marks": [point(SQUARE)], "conf_threshold": "high"}, "conf_threshold is"),
        ({"marks": [point(SQUARE)], "epsilon_factor": None}, "epsilon_factor is"),
        ({"text_prompt": "cat", "marks": [{"type": "rectangle", "data": [1, 2, 3, 4]}] * 2}, "words with 2 rectangles"),
    ],
)
def test_bad_requests_are_named(params, words, model, image):
    """The server answers with the message of what a model raises."""
    with pytest.raises(UserError, match=words):
        model.predict(image, params)


def test_the_configuration_follows_the_rules_of_the_server():
    """Words need a button to send them, and these widgets a value of their own (app/core/registry.py)."""
    widgets = {widget["name"]: widget["value"] for widget in CONFIG["widgets"]}
    assert CONFIG["model_id"] == "unipixel" and CONFIG["batch_processing_mode"] == "text_prompt"
    assert {"edit_text", "button_send", "button_add_point", "button_remove_point", "button_add_rect", "button_finish_object"} <= widgets.keys()
    assert 0 <= widgets["edit_conf"] <= 1 and 1 <= widgets["mask_fineness_slider"] <= 100 and type(widgets["toggle_preserve_existing_annotations"]) is bool
