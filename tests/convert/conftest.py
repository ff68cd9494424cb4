import pytest
from tiny_checkpoints import random_arrays, write_checkpoint


@pytest.fixture
def arrays():
    return random_arrays()


@pytest.fixture
def base(tmp_path, arrays):
    return write_checkpoint(tmp_path / "base", arrays)
