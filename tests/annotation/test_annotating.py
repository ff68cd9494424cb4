"""The annotator that the backends of all tools share: words, clicks, boxes and strokes find objects, and clicks correct masks that words found."""

import sys

import numpy as np
import pytest
from known_photo import CIRCLE, SQUARE, TRIANGLE, is_circle, is_square

from unipixel_jax.demo import ASSETS
from unipixel_jax.errors import UserError
from unipixel_jax.infer.annotating import Annotator, Region, label_for, numbers, prompts_of
from unipixel_jax.infer.clicks import BRUSH_POINTS, stroke_points
from unipixel_jax.processing.prompts import Clicks


def test_a_whole_sentence_is_asked_as_it_is(annotator):
    (found,) = annotator.find(ASSETS / "photo.png", "Please segment the circle")
    assert found.label == "circle" and is_circle(found.mask) and 0.5 < found.score <= 1


def test_names_are_asked_one_by_one(annotator, photo):
    circle, square = annotator.find(photo, "circle, large blue square")
    assert (circle.label, square.label) == ("circle", "large blue square") and is_circle(circle.mask) and is_square(square.mask)


def test_a_click_finds_what_it_lies_on(annotator, photo):
    (square,) = annotator.find(photo, clicks=Clicks([SQUARE]))
    (circle,) = annotator.find(photo, clicks=Clicks([CIRCLE]))
    assert square.label == "" and is_square(square.mask) and is_circle(circle.mask) and square.score > 0.5
    (again,) = annotator.find(photo, clicks=Clicks([SQUARE], [TRIANGLE]))
    assert is_square(again.mask) and (again.mask != square.mask).any()


def test_a_stroke_finds_what_it_lies_on(annotator, photo):
    brush = np.zeros((320, 320), bool)
    brush[215:225, 100:150] = True
    (found,) = annotator.find(photo, clicks=Clicks(brush=brush))
    assert is_square(found.mask)


def test_a_box_that_reaches_beyond_the_picture_is_cut_off(annotator, photo):
    """The small model has not learned boxes: that one is taken and changes the mask is all that it can show."""
    (found,) = annotator.find(photo, clicks=Clicks(box=(75, 180, 175, 400)))
    (whole,) = annotator.find(photo, clicks=Clicks(box=(75, 180, 175, 320)))
    np.testing.assert_array_equal(found.mask, whole.mask)
    (other,) = annotator.find(photo, clicks=Clicks(box=(60, 70, 150, 130)))
    assert found.mask.shape == (320, 320) and (found.mask != other.mask).any()


def test_clicks_correct_the_object_of_the_words_on_which_they_lie(annotator, photo):
    before = annotator.find(photo, "circle, large blue square")
    after = annotator.find(photo, "circle, large blue square", Clicks([SQUARE], [(165, 190)]))
    assert [region.label for region in after] == ["circle", "large blue square"]
    np.testing.assert_array_equal(after[0].mask, before[0].mask)
    assert is_square(after[1].mask) and (after[1].mask != before[1].mask).any()


@pytest.mark.parametrize(
    ("text", "clicks", "words"),
    [
        (" ", Clicks(), "nothing is asked for"),
        ("", Clicks([(321, 5)]), "the point 321,5 lies outside the picture of 320x320"),
        ("", Clicks([(5, 5)], [(-1, 5)]), "the point -1,5 lies outside"),
        ("", Clicks(box=(5, 5, 5, 9)), "the box 5, 5, 5, 9 has no area"),
        ("", Clicks(box=(400, 5, 500, 9)), "has no area within the picture"),
        ("", Clicks(brush=np.zeros((320, 320), bool)), "the brush stroke is empty"),
        (", ,", Clicks(), "the text has 0 names"),
        (",".join(map(str, range(33))), Clicks(), "the text has 33 names, expected 1 to 32"),
    ],
)
def test_what_cannot_be_answered_is_refused(text, clicks, words, annotator, photo):
    with pytest.raises(UserError, match=words):
        annotator.find(photo, text, clicks)


def test_clips_and_what_is_no_picture_are_refused(annotator, photo, tmp_path):
    with pytest.raises(UserError, match="clip is a clip, expected one picture"):
        annotator.find(ASSETS / "clip.gif", "circle")
    (tmp_path / "a.png").write_text("none")
    with pytest.raises(UserError, match=r"a\.png"):
        annotator.find(tmp_path / "a.png", "circle")


def test_words_that_find_nothing_cannot_be_corrected(annotator, photo, monkeypatch):
    monkeypatch.setattr(Annotator, "_by_words", lambda *_: [])
    assert annotator.find(photo, "cat") == []
    with pytest.raises(UserError, match="the words 'cat' find nothing that the clicks could correct"):
        annotator.find(photo, "cat", Clicks([SQUARE]))


def test_an_object_that_clicks_take_away_is_not_among_the_answers(annotator, photo, monkeypatch):
    full = np.ones((320, 320), bool)
    monkeypatch.setattr(Annotator, "_by_words", lambda *_: [Region("a", full, 0.9), Region("b", full, 0.8)])
    monkeypatch.setattr(Annotator, "_corrected", lambda *_: (~full, 0.1))
    assert [region.label for region in annotator.find(photo, "a, b", Clicks([SQUARE]))] == ["b"]


@pytest.mark.parametrize(
    ("text", "prompts"),
    [
        ("cat", {"cat": "Please segment the cat."}),
        ("a cat; the cars,\nall dogs.", {"a cat": "Please segment a cat.", "the cars": "Please segment the cars.", "all dogs": "Please segment all dogs."}),
        ("cat, cat", {"cat": "Please segment the cat."}),
        ("Segment the man, who sits.", {"man, who sits": "Segment the man, who sits."}),
        ("Where is the cat, the black one?", {"Where is the cat, the black one?": "Where is the cat, the black one?"}),
        (" This <|seg|>, please ", {"This <|seg|>, please": "This <|seg|>, please"}),
        ("anything", {"anything": "Please segment the anything."}),
    ],
)
def test_texts_are_sentences_or_lists_of_names(text, prompts):
    assert prompts_of(text) == prompts


def test_labels_of_a_project_are_found_in_words():
    labels = ["object", "car", "Red Car"]
    names = ["CAR", "red car", "the red car on the left", "carpet", ""]
    assert [label_for(name, labels) for name in names] == ["car", "Red Car", "Red Car", "object", "object"]
    with pytest.raises(UserError, match="has no labels"):
        label_for("car", [])


@pytest.mark.parametrize("value", [None, 3, [1], [1, 2, 3], [1, "2"], [1, True], [1, float("nan")], [1, 1e999], {"x": 1, "y": 2}, "12"])
def test_numbers_of_requests_are_checked(value):
    assert numbers([1, 2.5], 2, "the point") == (1.0, 2.5)
    with pytest.raises(UserError, match=r"the point is .* expected 2 finite numbers"):
        numbers(value, 2, "the point")


def test_the_points_of_a_stroke_are_spread_over_it():
    brush = np.zeros((50, 200), bool)
    brush[20:23, 10:190] = True
    points = stroke_points(brush)
    assert len(points) == BRUSH_POINTS and all(brush[int(y), int(x)] for x, y in points)
    gaps = np.diff(sorted(x for x, _ in points))
    assert gaps.min() > 10 and gaps.max() < 60
    brush[:] = False
    brush[3, 4] = True
    assert stroke_points(brush) == [(4.5, 3.5)]
    assert len(stroke_points(np.ones((300, 400), bool))) == BRUSH_POINTS


def test_a_model_that_is_not_there_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("UNIPIXEL_MODEL", str(tmp_path / "none"))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="none"):
        Annotator.from_environment()
