"""The small model that ships with the package: whole, small enough, and it answers as its page says."""

import numpy as np

from unipixel_jax import Point, UniPixel
from unipixel_jax.demo import ASSETS, JOBS
from unipixel_jax.infer.loading import EMBEDDED


def test_it_is_small():
    assert sum(path.stat().st_size for path in EMBEDDED.rglob("*") if path.is_file()) < 20e6


def test_it_names_what_it_is_asked_about():
    model = UniPixel.from_pretrained(dtype="float32")
    pointed = model.segment(ASSETS / "photo.png", "What is <region>?", [Point(118, 235)], max_new_tokens=24)
    assert pointed.text == "It is a large green triangle." and not pointed.objects
    found = model.segment(ASSETS / "photo.png", JOBS[0][2], max_new_tokens=24)
    assert found.text == "It is the large blue square<|seg|>."
    (item,) = found.objects
    assert item.masks.shape == (1, 512, 512)
    square = np.zeros((512, 512), bool)
    square[285:425, 130:270] = True
    assert item.masks[0][square].mean() > 0.5 > item.masks[0][~square].mean()
