"""The small model that ships with the package: whole, small enough, and it answers as its page says."""

import numpy as np
import pytest

from unipixel_jax import Point, UniPixel
from unipixel_jax.demo import ASSETS, JOBS
from unipixel_jax.infer.loading import EMBEDDED


def test_it_is_small():
    assert sum(path.stat().st_size for path in EMBEDDED.rglob("*") if path.is_file()) < 20e6


@pytest.fixture(scope="module")
def model():
    return UniPixel.from_pretrained(dtype="float32")


def test_it_segments_what_it_is_asked_for(model):
    found = model.segment(ASSETS / "photo.png", JOBS[0][2], max_new_tokens=24)
    assert found.text == "It is the large blue square<|seg|>."
    (item,) = found.objects
    assert item.masks.shape == (1, 320, 320)
    square = np.zeros((320, 320), bool)
    square[185:262, 82:168] = True
    assert item.masks[0][square].mean() > 0.9 > 0.1 > item.masks[0][~square].mean()
    other = model.segment(ASSETS / "photo.png", JOBS[1][2], max_new_tokens=24)
    assert other.text == "It is the small red circle<|seg|>."
    assert other.objects[0].masks[0][square].mean() < 0.1


@pytest.mark.parametrize(("point", "name"), [((74, 147), "large green triangle"), ((125, 220), "large blue square")])
def test_it_describes_what_is_pointed_at(model, point, name):
    pointed = model.segment(ASSETS / "photo.png", "What is <region>?", [Point(*point)], max_new_tokens=24)
    assert pointed.text == f"It is a {name}."
    assert not pointed.objects
