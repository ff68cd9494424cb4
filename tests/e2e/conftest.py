import numpy as np
import pytest
from random_model import random_model


@pytest.fixture(scope="session")
def model():
    return random_model(seed=1)


@pytest.fixture
def photo():
    return np.random.default_rng(0).integers(0, 256, (180, 240, 3), dtype=np.uint8)


@pytest.fixture
def clip():
    return np.random.default_rng(1).integers(0, 256, (3, 120, 160, 3), dtype=np.uint8)
