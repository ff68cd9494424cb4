import numpy as np
import pytest
from running_service import KEY, Running

from unipixel_jax import UniPixel
from unipixel_jax.client import Client
from unipixel_jax.data.synthetic.scene import draw_scene


@pytest.fixture(scope="session")
def model():
    return UniPixel.from_pretrained(dtype="float32")


@pytest.fixture(scope="session")
def running(model):
    server = Running(model)
    yield server
    server.stop()


@pytest.fixture
def http(running):
    with running.http() as client:
        yield client


@pytest.fixture(scope="session")
def client(running):
    with Client(running.url, KEY) as made:
        yield made


@pytest.fixture(scope="session")
def scenes():
    return [draw_scene(np.random.default_rng(seed)) for seed in range(4)]


@pytest.fixture(scope="session")
def clip():
    return draw_scene(np.random.default_rng(5), 6)
