"""SAM 2.1 alone: its official file, its published sizes, and the part of a converted UniPixel."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from unipixel_jax.config import SAM2_SIZES
from unipixel_jax.convert.safetensors_io import write_safetensors
from unipixel_jax.convert.sam2 import official_sizes
from unipixel_jax.convert.tables.sam2 import sam2_rules
from unipixel_jax.convert.tensors import Tensor
from unipixel_jax.convert.weights import read_file
from unipixel_jax.core.params import abstract, shapes
from unipixel_jax.errors import UserError
from unipixel_jax.infer.loading import EMBEDDED, load
from unipixel_jax.infer.sam2_loading import load_sam2
from unipixel_jax.models.sam2.tracker import Sam2

CHECKPOINT = Path(__file__).parents[1] / "recordings" / "sam2_nano" / "checkpoint"
FILE = CHECKPOINT / "sam2.pt"


def arrays(model):
    return dict(nnx.to_flat_state(nnx.state(model)))


def test_every_weight_of_the_official_file_has_its_place():
    theirs, model = read_file(FILE), load_sam2(FILE)
    assert sum(tensor.count for tensor in theirs.values()) == sum(leaf.get_value().size for leaf in arrays(model).values())
    pairs = {
        "maskmem_tpos_enc": model.maskmem_tpos_enc[...],
        "sam_mask_decoder.mask_tokens.weight": model.mask_decoder.mask_tokens[...],
        "sam_mask_decoder.output_hypernetworks_mlps.2.layers.1.weight": model.mask_decoder.hyper_mlps.fc2.weight[...][2],
        "image_encoder.trunk.blocks.4.mlp.layers.0.bias": model.hiera.stages[2].blocks.mlp.fc1.bias[...][0],
        "memory_encoder.fuser.layers.0.gamma": model.memory_encoder.fuser[0].scale[...],
    }
    for name, ours in pairs.items():
        assert np.array_equal(ours, theirs[name].load().astype(np.float32)), name


def test_weights_are_cast():
    assert {leaf.get_value().dtype for leaf in arrays(load_sam2(CHECKPOINT, "bfloat16")).values()} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("name", SAM2_SIZES)
def test_published_sizes_are_told_apart_by_their_weights(name, tmp_path):
    config = dataclasses.replace(SAM2_SIZES[name], image_size=1024)
    expected = {("sam2", *path): shape for path, shape in shapes(abstract(lambda rngs: Sam2(config, rngs))).items()}
    names = {name: shape for rule in sam2_rules(config) for name, shape in rule.torch_shapes(expected[rule.jax]).items()}
    tensors = {name: Tensor("F32", shape, lambda: iter(())) for name, shape in names.items()}
    assert official_sizes(tmp_path / "sam2.1.pt", tensors) == config


def test_a_converted_unipixel_gives_its_sam2():
    whole, alone = arrays(load(EMBEDDED).model.sam2), arrays(load_sam2(EMBEDDED))
    assert whole.keys() == alone.keys()
    assert all(np.array_equal(whole[path].get_value(), alone[path].get_value()) for path in whole)


def test_the_image_size_can_be_chosen():
    model = load_sam2(EMBEDDED, image_size=192)
    assert model.config.image_size == 192 and load_sam2(FILE, image_size=96).config.image_size == 96
    assert jax.eval_shape(lambda image: model.encode(image), jnp.zeros((1, 192, 192, 3))).low.shape == (1, 12, 12, model.config.d_model)


def changed(**changes):
    """The recorded weights with some in the place of others; None leaves one out."""
    tensors = read_file(FILE) | changes
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


FAULTS = {
    "SAM 2": ({"no_obj_embed_spatial": None}, r"lacks no_obj_embed_spatial, so it is of SAM 2 and not of SAM 2\.1"),
    "a missing weight": ({"no_mem_embed": None}, r"1 missing: sam2\.no_mem_embed"),
    "another weight": ({"teacher": Tensor.computed("F32", (1,), lambda: np.zeros(1))}, r"1 unexpected: sam2\.teacher"),
    "another shape": ({"no_obj_ptr": Tensor.computed("F32", (1, 3), lambda: np.zeros((1, 3)))}, r"no_obj_ptr \(1, 3\), expected \(1, 16\)"),
    "integers": ({"no_obj_ptr": Tensor.computed("I32", (1, 16), lambda: np.zeros((1, 16)))}, r"no_obj_ptr I32, expected one of"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_files_that_hold_something_else_get_one_clear_line(fault, tmp_path):
    changes, message = FAULTS[fault]
    shutil.copy(CHECKPOINT / "config.json", tmp_path)
    write_safetensors(tmp_path / "sam2.safetensors", changed(**changes), {})
    with pytest.raises(UserError, match=message) as caught:
        load_sam2(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_size_that_nobody_published_must_be_described(tmp_path):
    shutil.copy(FILE, tmp_path)
    with pytest.raises(UserError, match=r"width 6 and stages \(1, 2, 3, 1\), none of SAM 2\.1's published sizes"):
        load_sam2(tmp_path / "sam2.pt")
    (tmp_path / "config.json").write_text(json.dumps({"sam2_model": {"image_size": 64}}))
    with pytest.raises(UserError, match="sam2_model lacks embed_dim"):
        load_sam2(tmp_path / "sam2.pt")


@pytest.mark.parametrize("files", [(), ("sam2_a.pt", "sam2_b.pt")])
def test_directories_without_one_file_are_refused(files, tmp_path):
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=f"holds {len(files)} files called"):
        load_sam2(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        load_sam2(tmp_path / "nowhere")


def test_a_pickle_that_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "sam2.pt").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(UserError, match="no torch file"):
        load_sam2(tmp_path)


def test_the_model_computes_after_loading():
    features = jax.jit(lambda model, image: model.encode(image))(load_sam2(FILE), jnp.ones((1, 64, 64, 3)))
    assert np.isfinite(np.asarray(features.low)).all() and float(jnp.std(features.low)) > 0.1
