"""Two processes write one checkpoint together; they, and others, read it back."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from pair_worker import RUN_INFO, SHAPES, whole
from processes import Processes, free_port

from unipixel_jax.train.checkpoints.manager import Checkpoints


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The directory that two processes wrote to, and what each of them said."""
    folder = tmp_path_factory.mktemp("pair")
    directory, port = folder / "checkpoints", str(free_port())
    worker = str(Path(__file__).with_name("pair_worker.py"))
    flags = "--xla_force_host_platform_device_count=2"
    with Processes(folder / "said", [[worker, port, str(n), str(directory)] for n in (0, 1)], XLA_FLAGS=flags) as processes:
        ended = processes.ended(seconds=120)
    assert [one.status for one in ended] == [0, 0]
    return directory, [json.loads(one.out.splitlines()[-1]) for one in ended]


def test_each_process_finds_its_own_part_and_the_data(pair):
    assert [found["first"] for found in pair[1]] == [[3, {"position": 30}]] * 2


def test_damage_that_one_process_sees_is_damage_for_both(pair):
    assert [found["second"] for found in pair[1]] == [[2, {"position": 20}]] * 2
    assert all(found["right"] for found in pair[1])
    assert sorted(path.name for path in pair[0].iterdir()) == ["2", "damaged-3"]


def test_processes_must_read_the_same_data(pair):
    assert all("reads other data" in found["refused"] and '{"position": 41}' in found["refused"] for found in pair[1])


def test_one_process_goes_on(pair):
    target = {name: jax.ShapeDtypeStruct(shape, np.float32, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])) for name, shape in SHAPES.items()}
    with Checkpoints(pair[0], RUN_INFO, keep=2) as checkpoints:
        found = checkpoints.restore(target)
    assert (found.step, found.data) == (2, {"position": 20})
    assert all(np.array_equal(found.state[name], array) for name, array in whole(2).items())
