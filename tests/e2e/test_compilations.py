"""After a warm-up, a mixed workload compiles nothing: every size of a program is a rung of the Ladder."""

import jax
import numpy as np
import pytest
from random_model import random_model

PHOTOS = ((250, 380), (380, 250), (120, 130), (400, 400), (90, 600))
CLIPS = (2, 3, 5)
OBJECTS = (1, 2, 3, 4, 5, 6)


@pytest.fixture
def compiled():
    """How long each program took that was compiled, or read from the cache of compiled programs, since the list was last cleared."""
    events = []

    def listen(name, seconds, **_):
        if name == "/jax/core/compile/backend_compile_duration":
            events.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield events
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture
def silent():
    """A random model that never says <|seg|> itself: how many objects there are is what the prompt says."""
    model = random_model(seed=1)
    head = model.loaded.model.text.head.weight
    head[...] = head[...].at[model.config.seg_token_id].set(0)
    return model


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
    # Sizes between the rungs of the warm-up take the next rung, which exists already.
    segment((251, 379), 3, "Seek")
    assert compiled == []
