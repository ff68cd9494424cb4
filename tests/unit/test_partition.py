"""The shardings of weights: every weight of 3B and 7B on six meshes as recorded, and the rules on small cases."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from unipixel_jax.config import preset
from unipixel_jax.core import sharding
from unipixel_jax.core.axes import EMBED, HEADS, KV_HEADS, LAYERS, MLP, VOCAB
from unipixel_jax.core.mesh import AXES, MeshConfig, make_mesh, mesh_sizes
from unipixel_jax.errors import UserError
from unipixel_jax.models.partition import ELSEWHERE, TABLES, check_heads, text_rules

RECORDED = Path(__file__).parent / "partition"
SCRIPT = Path(__file__).parents[2] / "scripts" / "write_partition_specs.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("write_partition_specs", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def mesh(**sizes):
    return AbstractMesh(tuple(sizes.get(axis, 1) for axis in AXES), AXES)


@pytest.mark.parametrize("size", ["3b", "7b"])
@pytest.mark.parametrize("name", ["single", "dp-8", "fsdp-16", "fsdp_tp-16", "context-16", "hybrid-32"])
def test_every_weight_is_sharded_as_recorded(script, size, name):
    recorded = json.loads((RECORDED / f"{size}_{name}.json").read_text())
    found = script.specs(size, name)
    assert {path: spec for path, spec in found.items() if recorded.get(path) != spec} == {}
    assert recorded.keys() == found.keys()


def test_rules():
    text = text_rules(preset("7b"))
    both = mesh(fsdp=4, tensor=2)
    assert text.spec((LAYERS, MLP, EMBED), (28, 18944, 3584), both) == PartitionSpec(None, "tensor", "fsdp")
    assert text.spec((LAYERS, EMBED, HEADS), (28, 3584, 3584), both) == PartitionSpec(None, "fsdp", "tensor")
    assert TABLES.spec((VOCAB, EMBED), (512, 3584), both) == PartitionSpec(("fsdp", "tensor"))
    assert text.spec((LAYERS, EMBED), (28, 3584), both) == PartitionSpec()  # vectors are replicated
    assert text.spec((LAYERS, KV_HEADS, EMBED), (28, 512, 3584), mesh(tensor=8)) == PartitionSpec()  # 4 key heads
    assert ELSEWHERE.spec((MLP, EMBED), (320, 42), mesh(fsdp=16)) == PartitionSpec("fsdp")  # 42 does not divide, 320 does
    assert ELSEWHERE.spec((MLP, EMBED), (321, 42), mesh(fsdp=16)) == PartitionSpec()


def test_devices_that_share_a_sample_shard_its_weights():
    text, shared = text_rules(preset("7b")), mesh(fsdp=2, context=8)
    assert text.spec((LAYERS, MLP, EMBED), (28, 18944, 3584), shared) == PartitionSpec(None, None, ("fsdp", "context"))
    assert text.spec((LAYERS, EMBED, HEADS), (28, 3584, 3584), mesh(fsdp=4, context=2, tensor=2)) == PartitionSpec(None, ("fsdp", "context"), "tensor")
    assert ELSEWHERE.spec((MLP, EMBED), (32, 1280), shared) == PartitionSpec(None, ("fsdp", "context"))
    assert ELSEWHERE.spec((MLP, EMBED), (30, 42), shared) == PartitionSpec(None, "fsdp")  # 16 does not divide either, 2 does
    assert ELSEWHERE.spec((MLP, EMBED), (32, 1280), mesh(context=8)) == PartitionSpec(None, "context")
    assert TABLES.spec((VOCAB, EMBED), (512, 3584), shared) == PartitionSpec(("fsdp", "context"))
    assert TABLES.spec((VOCAB, EMBED), (510, 3584), shared) == PartitionSpec(None, ("fsdp", "context"))


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_gradients_of_gathered_weights_are_sharded_sums(rng, monkeypatch, platform):
    monkeypatch.setattr(sharding, "platform", lambda: platform)
    devices, whole, shards = make_mesh(MeshConfig("fsdp"), jax.devices()), PartitionSpec(), PartitionSpec("fsdp")
    x, weight = (rng.normal(size=shape).astype(np.float32) for shape in ((8, 64, 16), (32, 16)))

    def value(weight, x):
        each = sharding.over_samples(lambda x: jnp.sum(jnp.tanh(x @ sharding._gather(whole, shards, weight).T)))
        return jnp.sum(each(x))

    with jax.set_mesh(devices):
        placed = jax.device_put(weight, shards), jax.device_put(x, PartitionSpec(("data", "fsdp")))
        program = jax.jit(jax.grad(value)).lower(*placed).compile()
        found = program(*placed)
    outputs = x @ weight.T
    np.testing.assert_allclose(found, np.einsum("bto,bti->oi", 1 - np.tanh(outputs) ** 2, x), atol=1e-4)
    assert found.sharding.spec == shards
    # nothing but the weight is gathered where each device's sums are reduced
    assert platform == "cpu" or program.as_text().count(" all-gather(") == 1


def test_heads_that_do_not_divide_are_refused():
    check_heads(preset("7b"), mesh(tensor=4))
    with pytest.raises(UserError, match=r"mesh.tensor is 3, which does not divide 28 query heads and 4 key heads: choose one of \[2, 4, 28\]"):
        check_heads(preset("7b"), mesh(tensor=3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "fsdp_tp", "tensor": 3}, "a mesh of tensor 3 does not divide 8 devices: choose sizes whose product divides 8"),
        ({"preset": "fsdp", "context": 16}, "a mesh of context 16 does not divide 8 devices"),
        ({"preset": "hybrid"}, "the preset 'hybrid' needs at least 2 slices, and the devices form 1: use fsdp, or set mesh.slices"),
        ({"preset": "fsdp", "tensor": 2}, "mesh.tensor is 2 with the preset 'fsdp': fsdp_tp needs at least 2, and the others 1"),
        ({"preset": "dp", "slices": 2}, "mesh.slices is 2 with the preset 'dp': only hybrid tells slices apart"),
        ({"context": 0}, "mesh.context is 0, expected at least 1"),
    ],
)
def test_meshes_that_cannot_be(arguments, message):
    with pytest.raises(UserError, match=message):
        make_mesh(MeshConfig(**arguments), jax.devices())


def of_slices(devices, slices, platform="tpu"):
    return [SimpleNamespace(platform=platform, slice_index=i * slices // devices) for i in range(devices)]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MeshConfig(), "the preset 'fsdp' would divide weights over 2 slices: use --mesh.preset hybrid, which divides them within each"),
        (MeshConfig("fsdp_tp", tensor=2), "the preset 'fsdp_tp' would divide weights over 2 slices: use --mesh.preset hybrid"),
        (MeshConfig("dp", context=12), "the preset 'dp' would divide weights over 2 slices"),
        (MeshConfig("hybrid", slices=3), "mesh.slices is 3, and the devices form 2 slices: leave it out, or choose a multiple of 2"),
        (MeshConfig("hybrid", slices=1), "mesh.slices is 1, and the devices form 2 slices"),
    ],
)
def test_slices_that_are_not_kept_apart_are_refused(config, message):
    with pytest.raises(UserError, match=message):
        make_mesh(config, of_slices(12, 2))


def test_meshes_of_several_slices():
    devices = of_slices(12, 2)
    assert mesh_sizes(MeshConfig("hybrid"), devices) == {"data": 2, "fsdp": 6, "context": 1, "tensor": 1}
    assert mesh_sizes(MeshConfig("hybrid", slices=4), devices) == {"data": 4, "fsdp": 3, "context": 1, "tensor": 1}
    assert mesh_sizes(MeshConfig("dp", context=6), devices) == {"data": 2, "fsdp": 1, "context": 6, "tensor": 1}
    assert mesh_sizes(MeshConfig("single"), devices) == dict.fromkeys(AXES, 1)
    # hosts with GPUs are slices too, and the network between them is fast enough
    assert mesh_sizes(MeshConfig(), of_slices(12, 2, "gpu")) == {"data": 1, "fsdp": 12, "context": 1, "tensor": 1}


def test_sizes_of_presets():
    assert MeshConfig("hybrid", slices=2, context=2).sizes(16) == {"data": 2, "fsdp": 4, "context": 2, "tensor": 1}
    assert MeshConfig("dp").sizes(8) == {"data": 8, "fsdp": 1, "context": 1, "tensor": 1}
    assert MeshConfig("fsdp_tp", tensor=2).sizes(8) == {"data": 1, "fsdp": 4, "context": 1, "tensor": 2}
    assert MeshConfig("single").sizes(8) == {"data": 1, "fsdp": 1, "context": 1, "tensor": 1}
