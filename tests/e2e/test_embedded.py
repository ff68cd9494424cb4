"""The small model that ships with the package: whole, small enough, and it answers as its page says."""

import numpy as np
import pytest

from unipixel_jax import Point, UniPixel
from unipixel_jax.data.synthetic.language import full_name
from unipixel_jax.data.synthetic.scene import draw_scene
from unipixel_jax.demo import ASSETS, JOBS
from unipixel_jax.infer.loading import EMBEDDED
from unipixel_jax.synthetic.evaluation import iou


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


def test_it_follows_a_thing_by_what_it_remembers(model):
    assert not model.loaded.model.config.sam2_batch_mode
    followed = []
    for seed in range(4):
        scene = draw_scene(np.random.default_rng(seed), 4)
        for thing in range(2):
            found = model.segment(scene.frames, f"Segment the {full_name(scene, thing)}.", max_new_tokens=24)
            (item,) = found.objects
            followed.append([iou(item.masks[1:], scene.masks[other, 1:]) for other in (thing, 1 - thing)])
    right, wrong = np.mean(followed, axis=0)
    assert right > 0.6 and wrong < 0.1, followed
