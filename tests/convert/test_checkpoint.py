"""Arrays on disk: written in pieces, read by Orbax and by us, whole, cut, cast and sharded."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from unipixel_jax.core import checkpoint
from unipixel_jax.core.byte_streams import bytes_of
from unipixel_jax.core.checkpoint import StreamedArray
from unipixel_jax.errors import UserError


@pytest.fixture
def arrays():
    generator = np.random.default_rng(0)
    return {
        ("tower", "stages", 0, "w"): generator.standard_normal((4, 8, 6)).astype(np.float32),
        ("tower", "stages", 1, "w"): generator.standard_normal((1, 3)).astype(np.float32),
        ("bias",): generator.standard_normal(5).astype(ml_dtypes.bfloat16),
        ("wide",): generator.standard_normal((2, 2)),
    }


@pytest.fixture
def path(tmp_path, arrays):
    leaves = dict(arrays)
    stacked = leaves["tower", "stages", 0, "w"]
    pieces = tuple(lambda i=i: iter([bytes_of(stacked[i])[:50], bytes_of(stacked[i])[50:]]) for i in range(4))
    leaves["tower", "stages", 0, "w"] = StreamedArray(stacked.shape, stacked.dtype, pieces)
    leaves[("bias",)] = jnp.asarray(leaves[("bias",)])
    checkpoint.save(tmp_path / "params", leaves)
    return tmp_path / "params"


def nested(arrays, dtype=None, sharding=None):
    stages = {i: {"w": jax.ShapeDtypeStruct(arrays["tower", "stages", i, "w"].shape, dtype or jnp.float32, sharding=sharding)} for i in (0, 1)}
    bias = jax.ShapeDtypeStruct((5,), dtype or jnp.bfloat16)
    return {"tower": {"stages": stages}, "bias": bias, "wide": jax.ShapeDtypeStruct((2, 2), dtype or jnp.float32)}


def test_orbax_restores_it(path, arrays):
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore(path)
    np.testing.assert_array_equal(tree["tower"]["stages"]["0"]["w"], arrays["tower", "stages", 0, "w"])
    np.testing.assert_array_equal(tree["tower"]["stages"]["1"]["w"], arrays["tower", "stages", 1, "w"])
    assert tree["bias"].dtype == ml_dtypes.bfloat16 and tree["bias"].tobytes() == arrays[("bias",)].tobytes() and tree["wide"].dtype == np.float64


def test_a_layer_is_a_file_of_its_bytes(path, arrays):
    stacked = arrays["tower", "stages", 0, "w"]
    assert (path / "tower.stages.0.w" / "2.0.0").read_bytes() == stacked[2].tobytes()
    stored = checkpoint.read(path)
    assert stored.keys() == arrays.keys()
    assert b"".join(bytes(block) for block in stored["tower", "stages", 0, "w"].blocks()) == stacked.tobytes()
    for index in range(4):
        assert b"".join(bytes(block) for block in stored["tower", "stages", 0, "w"].blocks(index)) == stacked[index].tobytes()
    assert b"".join(bytes(block) for block in stored[("wide",)].blocks(1)) == arrays[("wide",)][1].tobytes()


def test_restore_keeps_or_casts(path, arrays):
    tree = checkpoint.restore(path, nested(arrays))
    np.testing.assert_array_equal(np.asarray(tree["tower"]["stages"][0]["w"]), arrays["tower", "stages", 0, "w"])
    assert tree["bias"].dtype == jnp.bfloat16
    half = checkpoint.restore(path, nested(arrays, jnp.bfloat16))
    expected = arrays["tower", "stages", 0, "w"].astype(ml_dtypes.bfloat16)
    assert np.asarray(half["tower"]["stages"][0]["w"]).tobytes() == expected.tobytes()


@pytest.mark.parametrize("spec", [("x",), (None, "x"), (None, None, "y"), ("x", "y")])
def test_restore_into_shards(path, arrays, spec):
    mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2, devices=jax.devices()[:4])
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
    abstract = nested(arrays)
    abstract["tower"]["stages"][0]["w"] = jax.ShapeDtypeStruct((4, 8, 6), jnp.float32, sharding=sharding)
    restored = checkpoint.restore(path, abstract)["tower"]["stages"][0]["w"]
    assert restored.sharding == sharding
    np.testing.assert_array_equal(np.asarray(restored), arrays["tower", "stages", 0, "w"])


def test_a_tree_that_does_not_fit_is_described_in_one_line(path, arrays):
    abstract = nested(arrays)
    del abstract["bias"]
    abstract["more"] = jax.ShapeDtypeStruct((1,), jnp.float32)
    abstract["wide"] = jax.ShapeDtypeStruct((3, 2), jnp.float32)
    with pytest.raises(UserError, match=r"more is missing; bias is not part of the model; wide is \(2, 2\), expected \(3, 2\)"):
        checkpoint.restore(path, abstract)


def test_missing_and_truncated_files(path, arrays, tmp_path):
    with pytest.raises(UserError, match="holds no arrays"):
        checkpoint.read(tmp_path / "nowhere")
    chunk = path / "tower.stages.0.w" / "3.0.0"
    chunk.write_bytes(chunk.read_bytes()[:-4])
    with pytest.raises(UserError, match=r"chunk 3\.0\.0 of 188 bytes, expected 192"):
        checkpoint.restore(path, nested(arrays))
    chunk.unlink()
    with pytest.raises(UserError, match=r"3\.0\.0 is missing"):
        checkpoint.read(path)
    chunk.write_bytes(arrays["tower", "stages", 0, "w"][3].tobytes())
    (path / "wide" / ".zarray").write_text((path / "wide" / ".zarray").read_text().replace('[2, 2], "dtype"', '[2, 1], "dtype"'))
    with pytest.raises(UserError, match=r"chunks of \[2, 1\]"):
        checkpoint.read(path)


class Model(nnx.Module):
    def __init__(self, make):
        self.layers = nnx.List([nnx.Param(make((2, 3))), nnx.Param(make((4,)))])


def test_a_model_is_restored_in_stored_or_given_dtypes(tmp_path):
    weights = [np.arange(6, dtype=np.float32).reshape(2, 3).astype(ml_dtypes.bfloat16), np.arange(4.0)]
    checkpoint.save(tmp_path / "params", {("layers", i): weight for i, weight in enumerate(weights)})
    abstract = Model(lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32))
    own = checkpoint.restore_model(tmp_path / "params", abstract)
    assert [p.get_value().dtype for p in own.layers] == [jnp.bfloat16, jnp.float32]
    np.testing.assert_array_equal(np.asarray(own.layers[1].get_value()), weights[1])
    cast = checkpoint.restore_model(tmp_path / "params", abstract, jnp.float32)
    assert [p.get_value().dtype for p in cast.layers] == [jnp.float32, jnp.float32]
    np.testing.assert_array_equal(np.asarray(cast.layers[0].get_value()), np.asarray(weights[0], np.float32))


def test_a_program_that_gets_its_own_results_back_is_compiled_once(tmp_path, compiled):
    checkpoint.save(tmp_path / "params", {("layers", 0): np.ones((2, 3), np.float32), ("layers", 1): np.ones(4, np.float32)})
    own = checkpoint.restore_model(tmp_path / "params", Model(lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32)))
    step = jax.jit(lambda model, state: state * model.layers[1].get_value())
    compiled.clear()
    step(own, step(own, jax.device_put(np.ones(4, np.float32))))
    assert len(compiled) == 1
