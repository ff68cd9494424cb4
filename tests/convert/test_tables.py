"""The tables name every tensor of every size, and agree with the model and with a checkpoint that the reference saved."""

import dataclasses
import json
from pathlib import Path

import pytest
from tiny_checkpoints import TIED, TINY, newer_name, torch_shapes

from unipixel_jax.config import PRESETS, SAM2_SIZES
from unipixel_jax.convert.names import canonical, renamed
from unipixel_jax.convert.rules import Coverage, conv_1x1, each, same, single, stacked
from unipixel_jax.convert.tables import all_rules
from unipixel_jax.convert.to_jax import model_shapes
from unipixel_jax.errors import UserError

SIZES = {
    **{name: config for name, config in PRESETS.items()},
    **{f"tiny with sam2 {name}": dataclasses.replace(TINY, sam2=size) for name, size in SAM2_SIZES.items()},
    "tied": TIED,
    "memory as wide as the model": dataclasses.replace(TINY, sam2=dataclasses.replace(TINY.sam2, mem_dim=TINY.sam2.d_model)),
}


@pytest.mark.parametrize("name", SIZES)
def test_rules_and_model_have_the_same_arrays(name):
    rules, shapes = all_rules(SIZES[name]), model_shapes(SIZES[name])
    assert sorted(map(str, shapes)) == sorted(str(rule.jax) for rule in rules)
    assert all(shapes[rule.jax][0] == len(rule.torch) for rule in rules if rule.stacked)
    names = [name for rule in rules for name in rule.torch]
    assert len(names) == len(set(names))


def test_names_and_shapes_are_those_of_a_saved_checkpoint():
    """`reference_names.json` lists a checkpoint of the tiny size as the torch reference saved it."""
    saved = json.loads((Path(__file__).parent / "reference_names.json").read_text())
    assert {name: list(shape) for name, shape in torch_shapes(TINY).items()} == saved


@pytest.mark.parametrize("name, count", [("3b", 1475), ("7b", 1380)])
def test_published_sizes(name, count):
    assert len(torch_shapes(PRESETS[name])) == count


def test_braces_pair_by_position():
    (first, second) = single([("{a,b}_x.weight", "{c,d}.w")], "t.", "j.")
    assert (first.torch, first.jax) == (("t.a_x.weight",), ("j", "c", "w")) and (second.torch, second.jax) == (("t.b_x.weight",), ("j", "d", "w"))
    assert len(single([("{a,b}.{c,d}", "{a,b}.{c,d}")])) == 4
    with pytest.raises(ValueError):
        single([("{a,b}", "{a}")])


def test_stacked_and_repeated_rules():
    (rule,) = stacked([("w", "v", conv_1x1)], "t.*.", "j.", range(2, 5))
    assert rule.torch == ("t.2.w", "t.3.w", "t.4.w") and rule.jax == ("j", "v")
    assert rule.torch_shapes((3, 8, 4)) == dict.fromkeys(rule.torch, (8, 4, 1, 1))
    assert stacked([("w", "v")], "t.*.", "j.", []) == []
    one, two = each([("w", "v")], "t.*.", "j.*.", range(2))
    assert (one.jax, two.jax, one.torch_shape) == (("j", 0, "v"), ("j", 1, "v"), same)


def test_coverage_lists_every_kind_of_difference_at_once():
    found = {"a": (1,), "b": (2,), "z": (1,)} | {f"extra.{i}": (1,) for i in range(30)}
    coverage = Coverage.of(found, {"a": (1,), "b": (3,), "c": (1,)})
    with pytest.raises(UserError) as error:
        coverage.require_complete("somewhere")
    text = str(error.value)
    assert "1 missing: c;" in text and "31 unexpected: z, extra.0" in text and ", ..." in text and "1 misshapen: b (2,), expected (3,)" in text
    assert "extra.18" in text and "extra.19" not in text and "\n" not in text
    Coverage.of({"a": (1,)}, {"a": None}).require_complete("somewhere")


def test_newer_names_and_peft_names_mean_the_older_ones():
    for name in torch_shapes(TINY):
        assert canonical(name) == canonical(newer_name(name)) == canonical(f"base_model.model.{newer_name(name)}") == name
    assert canonical("base_model.model.model.visual.blocks.0.attn.qkv.base_layer.bias") == "visual.blocks.0.attn.qkv.bias"
    with pytest.raises(UserError, match=r"holds model\.norm\.weight twice, once as model\.language_model\.norm\.weight"):
        renamed({"model.norm.weight": 1, "model.language_model.norm.weight": 2}, "file")
