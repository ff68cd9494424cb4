"""The ring of cache slots: an answer sees its whole prompt, wherever the ring is when its row is refilled."""

from dataclasses import replace

import numpy as np
import pytest
from random_model import random_model

from unipixel_jax import UniPixel
from unipixel_jax.infer.engine import Engine
from unipixel_jax.processing import batch
from unipixel_jax.processing.media import read_media

NEW = 20
PROMPTS = ("Look.", "What is at the left of the red circle?", "Why?", "Segment the small green triangle, if you please.", "Find it.", "Who is there?")
ERROR = 1e-5
"""Measured: 1.1e-6 of the largest entry; 0.35 where prompts lie elsewhere in the ring."""


@pytest.fixture(scope="module")
def model():
    """A random model that draws token 0 at every step, for which it says ``<|seg|>``, so that an answer has a state for each of its tokens and is cut off."""
    model = random_model(seed=2)
    head = model.loaded.model.text.head.weight
    head[...] = 0 * head[...]
    return UniPixel(replace(model.loaded, config=replace(model.config, seg_token_id=0)))


@pytest.fixture(scope="module")
def conversations(model):
    rng = np.random.default_rng(0)
    made = []
    for prompt in PROMPTS:
        media = batch.prepare_media(read_media(rng.integers(0, 256, (60, 60, 3), dtype=np.uint8), None), model.config, segment=False)
        made.append(batch.prepare_conversation(batch.user_turn(prompt), media, model.loaded.tokenizer, model.config))
    return made


@pytest.mark.slow
def test_states_after_the_ring_came_round_are_those_of_each_prompt_alone(model, conversations):
    """Both rows are refilled sixteen times, and each time the ring has moved on by the length of an answer."""
    alone = [np.asarray(model._generate(conversation, NEW)[1].hidden)[0, :NEW] for conversation in conversations]
    engine = Engine(model.loaded, model.sampling, model.seed, rows=2, group=1, max_new_tokens=NEW)
    places, errors = [], []
    for turn in range(16):
        chosen = [2 * turn % len(alone), (2 * turn + 1) % len(alone)]
        rows = [engine.admit([conversations[number]])[0] for number in chosen]
        answers = {answer.row: answer for answer in engine.advance(2)}
        for row, number in zip(rows, chosen, strict=True):
            assert answers[row].hidden.shape == alone[number].shape
            errors.append(np.abs(answers[row].hidden - alone[number]).max() / np.abs(alone[number]).max())
        places.append(int(engine._answers.at) % engine._answers.cache.segments.shape[1])
    assert np.diff(places).min() < 0, "the ring has not come round"
    assert max(errors) < ERROR
