"""The export of adapters on all linear layers and of the biases that are trained with them, from a state that was saved but not trained."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx
from micro_run import MODEL, micro_config, micro_start

from unipixel_jax.convert.safetensors_io import read_safetensors
from unipixel_jax.infer.loading import load
from unipixel_jax.models.lora import LoraConfig, merge_lora
from unipixel_jax.train.checkpoints.manager import CHECKPOINTS, Checkpoints
from unipixel_jax.train.checkpoints.manifest import RunInfo
from unipixel_jax.train.export import export
from unipixel_jax.train.setup import lay_out, set_up

LORA = LoraConfig(rank=2, alpha=4, layers="linear", bias="lora_only")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's directory, and its model, of which everything that is trained has other values than at the start."""
    folder = tmp_path_factory.mktemp("run")
    start = micro_start(folder / "start")
    config = micro_config(start, trained=("lora",), lora=LORA)
    setup = set_up(lay_out(config, MODEL, 6, jax.devices()[:1]), start)
    rng = np.random.default_rng(0)
    own = jax.tree.map(lambda a: jax.device_put(rng.normal(size=a.shape).astype(np.float32) / 8, a.sharding), setup.state.trained)
    run_info = RunInfo.of(config.to_json(), setup.model_config, config.trained, config.lora, start)
    with Checkpoints(folder / CHECKPOINTS, run_info, keep=1) as checkpoints:
        checkpoints.save(1, replace(setup.state, trained=own), {"step": 1})
    return folder, nnx.merge(setup.graph, own, setup.frozen)


def test_the_exported_model_has_the_products_and_the_biases(run, tmp_path):
    folder, model = run
    export(folder, tmp_path / "jax")
    found, wanted = (nnx.to_flat_state(nnx.state(m)) for m in (load(tmp_path / "jax").model, merge_lora(model)))
    wanted = dict(wanted)
    for path, leaf in found:
        np.testing.assert_allclose(leaf.get_value(), wanted[path].get_value(), rtol=1e-6, atol=1e-6, err_msg=str(path))


def test_the_adapter_names_the_layers_as_the_reference(run, tmp_path):
    folder, _ = run
    export(folder, tmp_path / "adapter", "adapter", base="BASE")
    targets = set(json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["target_modules"])
    assert {"model.visual.merger.mlp.0", "model.language_model.layers.0.mlp.up_proj", "model.visual.blocks.0.mlp.down_proj"} <= targets
    assert {"seg_head.1", "seg_head.3", "ref_proj_single", "ref_proj_double", "ref_proj.1", "tem_proj", "msk_proj.0", "msk_proj.2"} <= targets
    assert not any("sam2" in name or "lm_head" in name or "patch_embed" in name for name in targets)
    others = read_safetensors(tmp_path / "adapter" / "pytorch_model.safetensors").tensors
    biased = {name.removeprefix("base_model.model.").removesuffix(".bias") for name in others}
    assert biased < targets and all(name.endswith(".bias") for name in others)
    without = ("o_proj", "gate_proj", "up_proj", "down_proj")
    assert targets - biased == {name for name in targets if "language_model" in name and name.endswith(without)}
