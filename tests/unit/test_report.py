"""What is printed of an answer."""

import numpy as np

from unipixel_jax.infer.prediction import Answer, ClipAnswer, Prediction, SegmentedObject
from unipixel_jax.infer.report import print_prediction


def item(areas, prompt, span=None):
    masks = np.zeros((len(areas), 4, 5), bool)
    for mask, area in zip(masks, areas, strict=True):
        mask.flat[:area] = True
    scores = np.linspace(0.3, 0.6, len(areas), dtype=np.float32)
    return SegmentedObject.from_masks(masks, scores, scores / 2, span, prompt)


def test_every_prompt_without_an_object_is_named(capsys):
    objects = [item([3, 0], 0, (0, 7)), item([0, 0], 1, (8, 15))]
    found = Prediction("<|seg|>\n<|seg|>\nNo.", [], objects, [0, 1], (4, 5), ["a dog", "a cat", "a\ncow"])
    print_prediction(found)
    out, err = capsys.readouterr()
    where = ["[1] in 1 of 2 frames, score 0.60 (a dog)", "[2] nowhere to be seen in 2 frames, present with at most 0.30 (a cat)"]
    assert out.splitlines() == ["[1]", "[2]", "No.", *where]
    assert err.splitlines() == [
        'no such object: what "a cat" asks for is not to be seen',
        'no such object: the answer to "a cow" segments nothing; it is not there, or the prompt does not ask for a mask',
    ]
    assert [(part["found"], part["objects"]) for part in found.to_json()["prompts"]] == [(True, [1]), (False, [2]), (False, [])]
    assert [part["found"] for part in found.to_json()["objects"]] == [True, False]


def test_a_photo_has_its_box_and_nothing_more(capsys):
    print_prediction(Prediction("<|seg|>.", [], [item([2], 0, (0, 7))], [0], (4, 5), ["a dog"]))
    assert capsys.readouterr() == ("[1].\n[1] 2 pixels, box [0, 0, 2, 1], score 0.30\n", "")


def test_objects_are_counted_as_the_words_count_them(capsys):
    found = Prediction("[1] is larger.", [], [item([2], 0), item([5], 0)], [0], (4, 5), ["Which is larger?"], first=0)
    print_prediction(found)
    assert capsys.readouterr().out.splitlines() == [
        "[1] is larger.", "[0] 2 pixels, box [0, 0, 2, 1], score 0.30", "[1] 5 pixels, box [0, 0, 5, 1], score 0.30"
    ]  # fmt: skip
    told = found.to_json()
    assert [part["number"] for part in told["objects"]] == told["prompts"][0]["objects"] == list(found.numbers) == [0, 1]


def test_answers_are_joined_with_their_spans():
    first, second = Answer("a <|seg|>", [1, 2], np.ones((2, 3)), [None, (2, 9)]), Answer("b", [3], np.ones((0, 3)), [])
    whole = ClipAnswer.joined([first, second, Answer("<|seg|>", [2], np.ones((1, 3)), [(0, 7)])], ["a", "b", "c"], [0], (4, 6))
    assert whole.text == "a <|seg|>\nb\n<|seg|>" and whole.tokens == [1, 2, 3, 2] and whole.hidden.shape == (3, 3) and whole.owners == [0, 0, 2]
    assert whole.spans[0] is None and [whole.text[slice(*span)] for span in whole.spans[1:]] == ["<|seg|>", "<|seg|>"]
