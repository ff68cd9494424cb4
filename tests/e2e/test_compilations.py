"""After a warm-up, a mixed workload compiles nothing: every size of a program is one of the buckets."""

from collections import OrderedDict

import jax
import numpy as np
import pytest
from random_model import silent_model

from unipixel_jax import Box, Mask
from unipixel_jax.core.programs import Programs
from unipixel_jax.infer import segmentation, tracking
from unipixel_jax.infer.generate import generate

PHOTOS = ((250, 380), (380, 250), (120, 130), (400, 400), (90, 600))
CLIPS = (2, 3, 5)
OBJECTS = (1, 2, 3, 4, 5, 6)
PROGRAMS = [generate, *(value for module in (segmentation, tracking) for value in vars(module).values() if isinstance(value, Programs))]
"""All that the model runs to answer about a photo or a clip and to follow objects."""


@pytest.fixture
def silent(monkeypatch):
    """A model whose tests start without programs, since those that other tests of this process left would be dropped for new ones while a test counts."""
    for function in PROGRAMS:
        monkeypatch.setattr(function, "_kept", OrderedDict())
    return silent_model(seed=1)


def test_a_mixed_workload_compiles_nothing_after_warm_up(silent, compiled):
    rng = np.random.default_rng(0)

    def segment(size, objects, words):
        found = silent.segment(rng.integers(0, 256, (*size, 3), dtype=np.uint8), f"{words} {'<|seg|>' * objects}", max_new_tokens=1)
        assert len(found.objects) == objects

    for size in PHOTOS:
        segment(size, 1, "Find")
    for objects in OBJECTS:
        segment(PHOTOS[0], objects, "Find")
    for frames in CLIPS:
        segment((frames, *PHOTOS[0]), 2, "Find")
    assert compiled, "the listener hears nothing"

    compiled.clear()
    for number, objects in enumerate(OBJECTS):
        segment(PHOTOS[number % len(PHOTOS)], objects, "Show")
        segment((CLIPS[number % len(CLIPS)], *PHOTOS[0]), 2, "Hunt")
    # Sizes between the buckets of the warm-up take the next bucket, which exists already.
    segment((251, 379), 3, "Seek")
    assert compiled == []


@pytest.mark.slow
def test_only_the_programs_of_the_models_are_compiled(silent, compiled):
    """Everything around them is numpy, for any length of answers, frames, references and masks, since a small program for each shape would add up too."""
    rng = np.random.default_rng(0)

    def work(frames, height, new_tokens):
        clip = rng.integers(0, 256, (frames, height, 160, 3), dtype=np.uint8)
        silent.segment(clip, "Find <|seg|>", max_new_tokens=new_tokens)
        mask = np.zeros((frames, height, 160), bool)
        mask[:, 3 : height - 3, 5 : 40 + new_tokens] = True
        silent.ask(clip, "What is <region>?", [Mask(mask)], max_new_tokens=new_tokens)
        silent.ask(clip[:1], "What is <region>?", [Box(5, 5, 90, height - 5)], max_new_tokens=new_tokens)

    work(2, 120, 3)
    compiled.clear()
    before = sum(map(len, PROGRAMS))
    for new_tokens, (frames, height) in enumerate(((10, 121), (9, 119), (3, 240)), start=4):
        work(frames, height, new_tokens)
    assert len(compiled) == sum(map(len, PROGRAMS)) - before > 0


@pytest.mark.slow
def test_programs_beyond_the_limit_are_dropped_and_results_stay(silent, monkeypatch):
    for function in PROGRAMS:
        monkeypatch.setattr(function, "limit", 2)
    rng = np.random.default_rng(0)
    media = [rng.integers(0, 256, size, dtype=np.uint8) for size in ((250, 380, 3), (400, 400, 3), (90, 600, 3), (2, 120, 130, 3), (3, 250, 380, 3))]

    def masks(number):
        found = silent.segment(media[number], f"Find {'<|seg|>' * (number + 1)}", max_new_tokens=2)
        assert all(len(function) <= 2 for function in PROGRAMS)
        return found.tokens, np.stack([item.masks for item in found.objects])

    first = [masks(number) for number in range(len(media))]
    full = len(jax.devices()[0].client.live_executables())
    for number, (tokens, shapes) in enumerate(first):  # every one of them was dropped since
        again, found = masks(number)
        assert again == tokens
        np.testing.assert_array_equal(found, shapes)
    assert len(jax.devices()[0].client.live_executables()) <= full
