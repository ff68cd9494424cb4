"""The places that move the most bytes, in the recorded texts of compiled programs and in names written here."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from unipixel_jax.plan.hlo import Operation, read_costs
from unipixel_jax.plan.movers import COUNT, movers, place_of
from unipixel_jax.plan.scopes import module_scopes

RECORDED = Path(__file__).parent / "hlo"
NAMES = {
    "jit(decode)/text/method_extend/while/body/closed_call/blocks/mlp/down/dot_general": ("text.blocks.mlp.down", "matrix product"),
    "jit(decode)/text/method_logits/dot_general": ("text.logits", "matrix product"),
    "jit(decode)/text/method_extend/while/body/closed_call/blocks/attn/while/body/dot_general": ("text.blocks.attn", "attention scores or values"),
    "jit(step)/jvp(text)/while/body/closed_call/checkpoint/blocks/norm1/mul": ("text.blocks.norm1", "mul"),
    "jit(step)/transpose(jvp(sam2))/memory_attention/blocks/conv_general_dilated": ("sam2.memory_attention.blocks", "convolution, backward"),
    "jit(step)/vmap(jit(dynamic_index_in_dim))/dynamic_slice;a/b": ("whole program", "reading a slice"),
    "model.text.blocks.attn.k.weight.value": ("text.blocks.attn.k.weight", "copy"),
    "": ("whole program", "copy"),
}


@pytest.mark.parametrize("op_name", NAMES)
def test_names_in_the_words_of_the_model(op_name):
    opcode = "copy" if NAMES[op_name][1] == "copy" else "fusion"
    assert place_of(Operation("x", opcode, op_name, 1, 0.0, 1.0)) == NAMES[op_name]


RECORDINGS = {
    "v5e_forward": ["copy", "reading a slice", "add"],
    "v5p_gradient": ["matrix product, backward", "copy", "matrix product", "writing a slice", "squeeze"],
    "v5e_slices_gradient": ["copy", "matrix product, backward", "recv", "copy, backward", "reading a slice"],
    "h100_hosts_gradient": ["matrix product", "matrix product, backward", "writing a slice", "transposition, backward", "reading a slice, backward"],
}
"""The operations that move the most bytes in the small programs of record_hlo.py, which have no modules."""


@pytest.mark.parametrize("name", RECORDINGS)
def test_five_places_of_recorded_programs(name):
    costs = read_costs((RECORDED / f"{name}.txt").read_text(encoding="utf-8"), [0] * 4 + [1] * 12)
    found = movers(costs)
    assert len(found) <= COUNT and [m.what for m in found] == RECORDINGS[name] and [m.bytes for m in found] == sorted((m.bytes for m in found), reverse=True)
    assert all(m.share == m.bytes / costs.bytes for m in found) and sum(m.share for m in found) <= 1.0 + 1e-9
    assert all(m.place == "whole program" for m in found)
    assert sum(m.bytes for m in movers(costs, 1000)) == pytest.approx(costs.bytes)


class Leaf(nnx.Module):
    def __init__(self):
        self.weight = nnx.Param(jnp.ones((2, 2)))

    def __call__(self, x):
        return x @ self.weight[...]


class Tower(nnx.Module):
    def __init__(self):
        self.first, self.blocks = Leaf(), nnx.List([Leaf(), Leaf()])

    def __call__(self, x):
        return jnp.sin(self.first(x)) + self.blocks[1](x)

    def read(self, x):
        return jnp.cos(self(x))


class Model(nnx.Module):
    def __init__(self):
        self.text = Tower()

    def answer(self, x):
        return self.text.read(x)


def test_traced_operations_have_the_paths_of_their_modules():
    model, x = Model(), jnp.ones((2, 2))
    before = Tower.__call__

    wanted = [f"text/method_read/{inside}" for inside in ("cos", "sin", "first/dot_general", "blocks/dot_general")]

    def names(function):
        text = jax.jit(function).lower(model, x).as_text(debug_info=True)
        return [name for name in wanted if name in text]

    with module_scopes(model):
        assert len(names(lambda model, x: model.text.read(x))) == 4
        assert "method_answer/text/method_read/cos" in jax.jit(lambda model, x: model.answer(x)).lower(model, x).as_text(debug_info=True)
    assert not names(lambda model, x: model.text.read(x)) and Tower.__call__ is before
