"""Which weights are trained and in which groups, on a small model with adapters."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from tests.unit.micro_models import MICRO, micro_model
from unipixel_jax.convert.names import canonical
from unipixel_jax.convert.tables import all_rules
from unipixel_jax.core.trees import join
from unipixel_jax.errors import UserError
from unipixel_jax.models.lora import LoraConfig, add_lora
from unipixel_jax.train.trainable import CONSTANTS, PARTS, Group, group_of, groups, trained

NAMES = {path: join(path) for path, _ in nnx.to_flat_state(nnx.state(micro_model()))}


@pytest.fixture(scope="module")
def model():
    return add_lora(micro_model(), LoraConfig(rank=2), nnx.Rngs(0))


def names_of(model, *parts):
    return {join(path) for path, _ in nnx.to_flat_state(nnx.state(model, trained(parts)))}


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("embedding", {"text.embed.weight", "text.head.weight"}),
        ("projector", {"vision.merger.norm.weight"} | {f"vision.merger.mlp.fc{i}.{w}" for i in (1, 2) for w in ("weight", "bias")}),
        ("ref", {"tem_emb"} | {f"{n}.{w}" for n in ("ref_proj", "ref_proj_single", "ref_proj_double", "tem_proj") for w in ("weight", "bias")}),
        ("msk", {f"msk_proj.fc{i}.{w}" for i in (1, 2) for w in ("weight", "bias")}),
        ("seg", {"seg_head.norm.weight"} | {f"seg_head.mlp.fc{i}.{w}" for i in (1, 2) for w in ("weight", "bias")}),
        ("lora", {f"{b}.attn.{n}.lora_{m}" for b, ns in (("text.blocks", "q k v o"), ("vision.blocks", "qkv proj")) for n in ns.split() for m in "ab"}),
    ],
)  # fmt: skip
def test_each_name_trains_what_the_reference_does(model, part, expected):
    assert names_of(model, part) == expected


def test_whole_towers(model):
    assert names_of(model, "sam2") == {n for n in NAMES.values() if n.startswith("sam2.") and not n.endswith("pe_matrix")}
    assert names_of(model, "ref_enc") == {n for n in NAMES.values() if n.startswith("ref_encoder.") and not n.endswith("pe_matrix")}
    assert names_of(micro_model(), "vision", "text") == {n for n in NAMES.values() if n.startswith(("vision.", "text."))}
    assert names_of(micro_model(), "all") == {n for path, n in NAMES.items() if path[-1] not in CONSTANTS}
    assert names_of(model, "seg", "lora") == names_of(model, "seg") | names_of(model, "lora")


def test_under_an_adapter_the_weight_is_frozen(model):
    third_stage = names_of(model, "lora", "embedding", "ref", "ref_enc", "msk", "seg", "sam2")
    assert not [n for n in third_stage if n.startswith(("text.blocks", "vision.")) and "lora_" not in n]


def test_what_is_trained_is_what_torch_calls_a_parameter():
    """The recorded names of gradients are those of every parameter that takes part; what we call a constant is not among them."""
    recorded = Path(__file__).parents[1] / "recordings" / "nano_a" / "cases" / "train_loss.grad_names.json"
    theirs = {canonical(name) for name in json.loads(recorded.read_text(encoding="utf-8"))}
    constants = {name for rule in all_rules(MICRO) if rule.jax[-1] in CONSTANTS for name in rule.torch}
    assert len(constants) == 3 and not constants & theirs


def test_groups_of_the_learning_rate(model):
    rates = {path: group_of(path).rate for path, _ in nnx.to_flat_state(nnx.state(model))}
    assert {NAMES[p].split(".")[1] for p, rate in rates.items() if rate == "sam_encoder"} == {"hiera", "neck"}
    assert all(p[0] == "sam2" for p, rate in rates.items() if rate == "sam_decoder") and rates["sam2", "no_mem_embed"] == "sam_decoder"
    assert rates["ref_encoder", "point_embed"] == rates["text", "embed", "weight"] == "rest"
    assert {p[-1] for p, rate in rates.items() if rate == "lora"} == {"lora_a", "lora_b"}


@pytest.mark.parametrize(
    ("path", "decays"),
    [
        (("text", "blocks", "attn", "q", "weight"), True),
        (("text", "blocks", "attn", "q", "bias"), False),
        (("text", "blocks", "attn", "q", "lora_a"), True),
        (("text", "blocks", "norm1", "weight"), True),
        (("seg_head", "norm", "weight"), True),
        (("tem_emb",), True),
        (("sam2", "hiera", "stages", 1, "blocks", "norm1", "weight"), False),
        (("sam2", "hiera", "pos_embed"), True),
        (("sam2", "neck", "convs", 0, "weight"), True),
        (("sam2", "memory_attention", "norm", "weight"), False),
        (("sam2", "memory_attention", "blocks", "norm3", "weight"), False),
        (("sam2", "mask_decoder", "transformer", "layers", 0, "norm4", "weight"), False),
        (("sam2", "mask_decoder", "transformer", "norm_final", "weight"), False),
        (("sam2", "mask_decoder", "upscale_norm", "weight"), True),
        (("sam2", "memory_encoder", "mask_down", "norms", 2, "weight"), True),
        (("sam2", "memory_encoder", "fuser", 0, "norm", "weight"), True),
        (("sam2", "memory_encoder", "fuser", 0, "scale"), True),
        (("sam2", "prompt_encoder", "mask_down", "norm1", "weight"), True),
        (("sam2", "prompt_encoder", "mask_down", "norm1", "bias"), False),
    ],
    ids=lambda value: join(value) if isinstance(value, tuple) else "",
)  # fmt: skip
def test_weight_decay(path, decays):
    """A weight decays if the reference, which goes by names and modules of torch, lets it decay; the recording of training steps compares every parameter."""
    assert group_of(path).decays == decays


@pytest.mark.parametrize("form", ["state", "dict", "module"])
def test_groups_keep_the_form_of_what_they_describe(model, form):
    state = nnx.state(model, trained(["lora", "sam2"]))
    params = {"state": state, "dict": nnx.to_pure_dict(state), "module": micro_model()}[form]
    made = groups(params)
    is_group = lambda x: isinstance(x, Group)  # noqa: E731
    assert jax.tree.structure(made, is_leaf=is_group) == jax.tree.structure(params)
    flat = [g for g in jax.tree.leaves(made, is_leaf=is_group)]
    assert len(flat) == len(jax.tree.leaves(params)) and all(isinstance(g, Group) for g in flat)
    sam = made.sam2 if form == "module" else made["sam2"]
    assert Group("sam_encoder", False) in jax.tree.leaves(sam, is_leaf=is_group)


def test_wrong_names_are_refused():
    with pytest.raises(UserError, match=r"'sam' is no part to train.*did you mean 'sam2'"):
        trained(["seg", "sam"])
    with pytest.raises(UserError, match="did you mean 'embedding'"):
        trained(["embeddings"])
    with pytest.raises(UserError, match="nothing to train"):
        trained([])
    with pytest.raises(UserError, match="'all' trains every weight"):
        trained(["all", "lora"])
    assert np.all([trained([name]) for name in PARTS])
