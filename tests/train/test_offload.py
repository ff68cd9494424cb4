"""The optimizer's state in the hosts' memory between updates."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from micro_run import MODEL, micro_config, micro_start

from unipixel_jax.core import fingerprint
from unipixel_jax.core.sharding import HOST_MEMORY, bytes_per_device
from unipixel_jax.errors import UserError
from unipixel_jax.train.checkpoints.manager import Checkpoints
from unipixel_jax.train.checkpoints.manifest import RunInfo
from unipixel_jax.train.optim import OptimConfig
from unipixel_jax.train.setup import lay_out, set_up
from unipixel_jax.train.step import make_update


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return micro_start(tmp_path_factory.mktemp("start") / "model")


def ready(start, offload):
    config = micro_config(start, trained=("seg",), offload_optimizer=offload, optim=OptimConfig(warmup_ratio=0.0))
    return set_up(lay_out(config, MODEL, 6, jax.devices()[:8]), start)


def updated(setup, state, steps=2):
    """The state after some updates with random gradients, one of which is not finite and changes nothing."""
    update = make_update(setup)
    for step in range(steps):
        rng = np.random.default_rng(step)
        grads = jax.tree.map(lambda a, rng=rng: jax.device_put(rng.normal(size=a.shape).astype(np.float32), a.sharding), state.trained)
        state, metrics = update(state, grads, jnp.float32("nan" if step else 1.0))
        assert bool(metrics.finite) == (step == 0)
    return state


def moments(state):
    return [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]


def test_the_same_updates_with_the_state_on_the_host(start):
    here, there = ready(start, False), ready(start, True)
    assert {leaf.sharding.memory_kind for leaf in moments(there.state)} == {HOST_MEMORY} != {leaf.sharding.memory_kind for leaf in moments(here.state)}
    stayed, moved = updated(here, here.state), updated(there, there.state)
    assert {leaf.sharding.memory_kind for leaf in moments(moved)} == {HOST_MEMORY}
    assert HOST_MEMORY not in {leaf.sharding.memory_kind for leaf in jax.tree.leaves(moved.trained)}
    assert any(np.any(leaf) for leaf in moments(moved))
    for ours, theirs in zip(jax.tree.leaves((moved.trained, moved.opt_state)), jax.tree.leaves((stayed.trained, stayed.opt_state)), strict=True):
        assert ours.sharding.spec == theirs.sharding.spec
        np.testing.assert_array_equal(ours, theirs)


def test_checkpoints_go_to_the_host_and_from_it(start, tmp_path, monkeypatch):
    """A run goes on with its state in either memory; large arrays are summed by the devices."""
    monkeypatch.setattr(fingerprint, "SMALL", 64)
    here, there = ready(start, False), ready(start, True)
    state = updated(there, there.state, 1)
    run_info = RunInfo.of(there.config.to_json(), there.model_config, there.config.trained, None, start)
    with Checkpoints(tmp_path, run_info, keep=1) as checkpoints:
        checkpoints.save(1, state, {"step": 1})
        checkpoints.wait()
        for setup in (there, here):
            restored = checkpoints.restore(lay_out(setup.config, MODEL, 6, jax.devices()[:8]).state).state
            kinds = {leaf.sharding.memory_kind for leaf in moments(restored)}
            assert kinds == {leaf.sharding.memory_kind for leaf in moments(setup.state)}
            for ours, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
                np.testing.assert_array_equal(ours, theirs)
            updated(setup, restored, 1)


def test_a_plan_counts_what_the_devices_hold(start):
    here, there = ready(start, False), ready(start, True)
    counters = sum(leaf.dtype.itemsize for leaf in jax.tree.leaves(there.state.opt_state) if not leaf.ndim)
    assert bytes_per_device(there.state.opt_state) == counters < bytes_per_device(here.state.opt_state) - bytes_per_device(here.state.trained)
    assert bytes_per_device(there.state.trained) == bytes_per_device(here.state.trained)


def test_devices_without_such_memory_are_refused(start, monkeypatch):
    monkeypatch.setattr("unipixel_jax.train.setup.HOST_MEMORY", "elsewhere")
    layout = lay_out(micro_config(start), MODEL, 6, jax.devices()[:1])
    with pytest.raises(UserError, match=r"needs the memory 'elsewhere', and cpu has device, .*: train with --no-offload-optimizer"):
        set_up(replace(layout, config=replace(layout.config, offload_optimizer=True)), start)
