"""Answers and masks of several devices are those of one."""

import jax
import numpy as np
import pytest
from flax import nnx

from unipixel_jax import Box, UniPixel
from unipixel_jax.cli import main
from unipixel_jax.core.mesh import MeshConfig
from unipixel_jax.data.synthetic.scene import draw_scene
from unipixel_jax.demo import ASSETS
from unipixel_jax.errors import UserError

MESHES = {"fsdp_tp": MeshConfig("fsdp_tp", tensor=4), "context": MeshConfig(context=4), "all": MeshConfig("fsdp_tp", tensor=2, context=2)}


@pytest.fixture(scope="module")
def scene():
    return draw_scene(np.random.default_rng(5), 4)


def answers(model, frames):
    box = Box(20, 20, 90, 90)
    return [model.segment(frames, "Segment the leftmost object.", max_new_tokens=16), model.ask(frames, "What is <region>?", [box], max_new_tokens=16)]


@pytest.fixture(scope="module")
def alone(scene):
    return answers(UniPixel.from_pretrained(dtype="float32"), scene.frames)


@pytest.mark.slow
@pytest.mark.parametrize("name", MESHES)
def test_the_same_answers_and_masks(name, scene, alone):
    model = UniPixel.from_pretrained(dtype="float32", mesh=MESHES[name])
    leaves = jax.tree.leaves(nnx.state(model.loaded.model))
    held = sum(leaf.addressable_shards[0].data.size for leaf in leaves)
    assert held < 0.5 * sum(leaf.size for leaf in leaves)
    for found, wanted in zip(answers(model, scene.frames), alone, strict=True):
        assert found.text == wanted.text
        for a, b in zip(found.objects, wanted.objects, strict=True):
            np.testing.assert_allclose(a.scores, b.scores, atol=1e-5)
            assert np.mean(a.masks != b.masks) < 1e-4


def test_heads_that_do_not_divide():
    with pytest.raises(UserError, match=r"mesh.tensor is 8, which does not divide 4 query heads and 4 key heads: choose one of"):
        UniPixel.from_pretrained(mesh=MeshConfig("fsdp_tp", tensor=8))


def test_command_names_devices_that_do_not_divide(tmp_path, capsys):
    assert main(["segment", str(ASSETS / "photo.png"), "Segment the circle.", "--tensor", "3", "--output-dir", str(tmp_path)]) == 1
    assert "mesh.tensor is 3, which does not divide 4 query heads and 4 key heads: choose one of" in capsys.readouterr().err
