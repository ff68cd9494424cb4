"""Quantising: how far whole numbers are from the weights, what is quantised, how it lies on meshes and on disk, and what is refused."""

import builtins
import importlib.util
import json
import math
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh
from micro_models import MICRO

from unipixel_jax.config import ConfigError, UniPixelConfig, preset
from unipixel_jax.core import quantising
from unipixel_jax.core.checkpoint import StreamedArray, save
from unipixel_jax.core.mesh import AXES
from unipixel_jax.core.quantisation import Quantisation, is_quantised, scales_of
from unipixel_jax.core.quantising import QuantisedScales, QuantisedWeights, quantise
from unipixel_jax.core.stored import paired, read, unpacked
from unipixel_jax.errors import UserError
from unipixel_jax.models.partition import partitioned
from unipixel_jax.models.quantised import quantised_config, require_full
from unipixel_jax.models.unipixel import abstract_model

SCRIPT = Path(__file__).parents[2] / "scripts" / "write_partition_specs.py"


def back(values, scales):
    """The weights [out, in] that whole numbers and scales stand for."""
    if values.ndim == 2:
        return values.astype(np.float64) * scales[:, None]
    return (values.astype(np.float64) * scales[:, None].astype(np.float64)).reshape(-1, values.shape[-1]).T


@pytest.mark.parametrize(
    ("dtype", "group", "relative"),
    [("int8", None, 0.0083), ("int8", 128, 0.0067), ("int8", 32, 0.0058), ("int4", 128, 0.111), ("int4", 64, 0.103), ("int4", 32, 0.095)],
)
def test_errors_of_normal_weights(rng, dtype, group, relative):
    """The largest error is half a step, and a little where the scale is rounded to bfloat16; the relative errors are as measured, for rows of 2,048."""
    weight = rng.normal(size=(64, 2048)).astype(np.float32) * 0.02
    values, scales = quantise(weight, dtype, group)
    steps = scales[:, None] if group is None else np.repeat(scales.astype(np.float32), group, axis=0).T
    bound = 0.5001 if group is None else 0.5 + (128 if dtype == "int8" else 8) * 2**-8
    error = back(values, scales) - weight
    assert np.all(np.abs(error) <= bound * steps)
    assert np.linalg.norm(error) / np.linalg.norm(weight) == pytest.approx(relative, rel=0.02)


def test_rows_of_zeros_and_outliers(rng):
    weight = rng.normal(size=(4, 64)).astype(np.float32)
    weight[1], weight[2, 7] = 0, 1000
    values, scales = quantise(weight, "int8")
    assert not values[1].any() and values[2, 7] == 127 and np.isfinite(scales).all()
    np.testing.assert_allclose(back(*quantise(weight, "int8", 32))[2, 32:], weight[2, 32:], atol=0.03)  # the outlier's neighbours alone lose


def test_pairs_of_int4():
    values = np.arange(-8, 8, dtype=np.int8).astype(ml_dtypes.int4).reshape(2, 2, 4)
    assert paired(values).dtype == np.uint8 and paired(values).shape == (2, 2, 2)
    np.testing.assert_array_equal(unpacked(paired(values)).astype(np.int8), values.astype(np.int8))


@pytest.mark.parametrize(("dtype", "group"), [("int8", None), ("int8", 8), ("int4", 8)])
@pytest.mark.parametrize("rows_at_once", [1 << 24, 5 * 32])
def test_any_part_is_that_of_the_whole(tmp_path, rng, monkeypatch, dtype, group, rows_at_once):
    """Whatever a device holds, and however few rows are in memory at a time."""
    monkeypatch.setattr(quantising, "ROWS_AT_ONCE", rows_at_once)
    full = rng.normal(size=(3, 12, 32)).astype(np.float32)
    save(tmp_path / "params", {("a",): StreamedArray(full.shape, full.dtype, [lambda i=i: iter((memoryview(full[i]).cast("B"),)) for i in range(3)])})
    made = [quantise(layer, dtype, group) for layer in full]
    values, scales = (np.stack(arrays).astype(np.float32) for arrays in zip(*made, strict=True))
    weights = QuantisedWeights(read(tmp_path / "params")[("a",)], dtype, group)
    assert (weights.shape, QuantisedScales(weights).shape) == (values.shape, scales.shape)
    cuts = [slice(None), slice(1, 3)]
    for layers in cuts:
        for second in cuts:
            for last in (slice(None), slice(4, 8)):
                index = (layers, second, *[slice(None)] * (values.ndim - 3), last)
                np.testing.assert_array_equal(weights.load(index, weights.dtype).astype(np.float32), values[index])
                own = (layers, second) if group is None else (layers, second, last)
                np.testing.assert_array_equal(QuantisedScales(weights).load(own, np.dtype(np.float32)), scales[own])


@pytest.mark.parametrize("size", ["3b", "7b"])
def test_what_is_quantised(size):
    """The paths that files go by are the layers that the model quantises: all matrices of the language model."""
    full, model = (abstract_model(replace(preset(size), quantisation=how)) for how in (None, Quantisation.of("int4")))
    before, after = ({path: leaf.get_value() for path, leaf in nnx.to_flat_state(nnx.state(m))} for m in (full, model))
    chosen = {path for path in before if is_quantised(path)}
    assert chosen == {path for path, leaf in after.items() if jnp.issubdtype(leaf.dtype, jnp.integer)}
    assert after.keys() - before.keys() == {scales_of(path) for path in chosen}
    matrices = {path for path, leaf in before.items() if path[0] == "text" and len(leaf.shape) - (path[1] == "blocks") == 2}
    assert chosen == matrices
    assert {after[path].dtype for path in chosen if path[1] != "blocks"} == {jnp.dtype("int8")}


def specs(script, size, mesh, how):
    arrangement, devices = script.MESHES[mesh]
    config = replace(preset(size), quantisation=how)
    sizes = AbstractMesh(tuple(arrangement.sizes(devices).values()), AXES)
    model = partitioned(abstract_model(config), config, sizes, jnp.dtype("bfloat16"))
    return {path: leaf.get_value() for path, leaf in nnx.to_flat_state(nnx.state(model))}


@pytest.mark.parametrize("size", ["3b", "7b"])
@pytest.mark.parametrize("mesh", ["single", "dp-8", "fsdp-16", "fsdp_tp-16", "context-16", "hybrid-32"])
def test_shardings(size, mesh):
    """With a scale for each row, weights lie as full ones do, whose places the golden files record; in groups, each chip holds as small a share."""
    spec = importlib.util.spec_from_file_location("write_partition_specs", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    full, rows, groups = (specs(script, size, mesh, how) for how in (None, Quantisation.of("int8"), Quantisation.of("int4")))
    for path, leaf in rows.items():
        if path in full:
            assert leaf.sharding.spec == full[path].sharding.spec
            assert leaf.dtype == ("int8" if is_quantised(path) else "bfloat16")
    for path, leaf in groups.items():
        if is_quantised(path) and path[1] == "blocks":
            held, before = (math.prod(a.sharding.shard_shape(a.shape)) for a in (leaf, full[path]))
            assert held == before
            stack, inner, _, outer = (*leaf.sharding.spec, None, None, None, None)[:4]
            assert (*groups[scales_of(path)].sharding.spec, None, None, None)[:3] == (stack, inner, outer)


def test_settings():
    assert Quantisation.of("int8").group is None and Quantisation.of("int4").group == 32
    for how in (Quantisation("int8"), Quantisation("int4", 64)):
        assert Quantisation.read(how.written()) == how
        assert UniPixelConfig.from_hf(json.loads(json.dumps(replace(MICRO, quantisation=replace(how, group=None)).to_hf()))).quantisation.weights == how.weights
    assert Quantisation.read({}) is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Quantisation.of("int5"), "weights 'int5' cannot be had: expected one of int8, int4"),
        (lambda: Quantisation.of("int4", 0), "a group of 0 weights cannot be had: expected an even number from 2 to 65536"),
        (lambda: Quantisation.of("int4", 7), "a group of 7 weights cannot be had"),
        (lambda: Quantisation.of("int4").with_int8_activations(), "int8 activations need one scale for each row of weights"),
        (lambda: Quantisation.read({"quantization_config": {"quant_method": "gptq", "bits": 4}}), "config.json has the quantization_config .*gptq"),
        (lambda: Quantisation.read({"quantization_config": 4}), "config.json has the quantization_config 4"),
        (lambda: Quantisation.read({"quantization_config": {"quant_method": "qwix", "bits": 8, "group_size": "x"}}), "a group of x weights"),
        (lambda: replace(MICRO, quantisation=Quantisation("int8", 64)), "groups of 64 weights do not divide the hidden_size 32"),
        (lambda: replace(MICRO, quantisation=Quantisation("int4", 32)), "groups of 32 weights do not divide the intermediate_size 48"),
        (lambda: quantised_config(replace(MICRO, quantisation=Quantisation("int8")), Quantisation("int8"), "model"), "model holds int8 weights already"),
        (lambda: require_full(replace(MICRO, quantisation=Quantisation("int8")), "model", "training"), "training needs full weights, and model holds int8"),
    ],
)
def test_refusals(make, message):
    with pytest.raises((UserError, ConfigError), match=message):
        make()


def test_without_qwix(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **options):
        if name == "qwix":
            raise ImportError("No module named 'qwix'", name="qwix")
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    quantising._program.cache_clear()
    with pytest.raises(UserError, match=r"quantising needs qwix: run pip install 'unipixel-jax\[quantise\]'"):
        quantise(np.ones((2, 4), np.float32), "int8")


def test_quantising_leaves_the_default_device_alone():
    values, scales = quantise(np.ones((2, 4), np.float32), "int8")
    assert isinstance(values, np.ndarray) and isinstance(scales, np.ndarray)
    assert jax.config.jax_default_device is None
