"""The same batch gives the same losses and gradients however the devices are arranged."""

import json
import pickle
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest
from presets_worker import MESHES, WIDE, config_of, one_step
from processes import Processes, free_port

from unipixel_jax.core.mesh import MeshConfig
from unipixel_jax.train.setup import lay_out, set_up

BOUND = 1e-5
"""In float32: of the norm of a gradient's difference to that of the whole, and of a loss."""
DOUBLE_BOUND = 1e-10
"""In double precision, where all differences but rounding's show; 3.6e-14 was measured."""
QUICK = ("fsdp_tp and context, 8",)
"""The meshes that the normal suite tries. This one divides samples, weights and sequences; all others are in the slow tests."""
SHARDED = [name for name in MESHES if name != "single"]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    from unipixel_jax.convert import to_jax
    from unipixel_jax.convert.random import random_source
    from unipixel_jax.infer.loading import EMBEDDED

    directory = tmp_path_factory.mktemp("start") / "model"
    to_jax.convert(random_source(WIDE, EMBEDDED, 0), directory)
    return directory


@pytest.fixture(scope="module")
def whole(start):
    """The losses and gradients of one device."""
    return one_step(start, "single", "shapes_image")


@pytest.fixture(scope="module")
def in_double(start, tmp_path_factory):
    """A function from a mesh's name, a kind of batch and a number of processes to losses and gradients in double precision."""

    @cache
    def step(name, kind, count=1):
        folder = tmp_path_factory.mktemp("double")
        command = [str(Path(__file__).with_name("presets_worker.py")), str(start), name, kind, str(folder / "found.pkl")]
        shared = {"coordinator_address": f"127.0.0.1:{free_port()}", "num_processes": count, "start_seconds": 600, "lost_seconds": 600}
        commands = [command] if count == 1 else [[*command, json.dumps(shared | {"process_id": n})] for n in range(count)]
        flags = f"--xla_force_host_platform_device_count={8 // count} --xla_backend_optimization_level=0"
        with Processes(folder, commands, XLA_FLAGS=flags) as processes:
            ended = processes.ended(seconds=1800)
        assert [one.status for one in ended] == [0] * count, "".join(one.err for one in ended)
        return pickle.loads((folder / "found.pkl").read_bytes())

    return step


def assert_same(found, wanted, bound):
    """Losses and gradients of ``one_step`` are equal."""
    for a, b in zip(jax.tree.leaves(found[0]), jax.tree.leaves(wanted[0]), strict=True):
        np.testing.assert_allclose(a, b, rtol=bound, atol=bound / 100)
    assert found[1].keys() == wanted[1].keys()
    total = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(wanted[1])))
    for path, grad in wanted[1].items():
        assert found[1][path].dtype == grad.dtype
        assert np.linalg.norm(found[1][path] - grad) <= bound * max(np.linalg.norm(grad), 1e-3 * total), path


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in SHARDED])
def test_a_divided_batch_equals_a_whole_one(start, whole, name):
    assert_same(one_step(start, name, "shapes_image"), whole, BOUND)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARDED)
def test_divided_clips_equal_whole_ones_in_double_precision(in_double, name):
    wanted = in_double("single", "shapes_clip")
    assert {grad.dtype for grad in wanted[1].values()} == {np.dtype(np.float64)}
    assert_same(in_double(name, "shapes_clip"), wanted, DOUBLE_BOUND)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["shapes_image", "shapes_clip"])
@pytest.mark.parametrize("name", ["dp, 8", "fsdp, 8", "fsdp_tp, 8", "hybrid, 8"])
def test_two_processes_equal_one_chip(in_double, name, kind):
    assert_same(in_double(name, kind, 2), in_double("single", kind), DOUBLE_BOUND)


@pytest.mark.parametrize("name", ["dp, 8", "fsdp, 8", "fsdp_tp and context, 8"])
def test_weights_are_read_and_made_the_same_bit_by_bit(start, name):
    mesh, count = MESHES[name]
    alone = set_up(lay_out(config_of(start, MeshConfig("single"), "shapes_image"), WIDE, 6, jax.devices()[:1]), start)
    divided = set_up(lay_out(config_of(start, mesh, "shapes_image"), WIDE, 6, jax.devices()[:count]), start)
    for a, b in zip(jax.tree.leaves((alone.state, alone.frozen)), jax.tree.leaves((divided.state, divided.frozen)), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    held = sum(leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(divided.frozen))
    whole = sum(leaf.size for leaf in jax.tree.leaves(divided.frozen))
    assert held == whole if name == "dp, 8" else held < 0.6 * whole
