"""LoRA adapters: the layers that get them, what they add, and merging them into the weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.unit.micro_models import MICRO, TEXT, VISION, micro_model, random
from unipixel_jax.core import stacking
from unipixel_jax.core.axes import HEADS, LAYERS
from unipixel_jax.core.dropout import with_keys
from unipixel_jax.core.params import abstract
from unipixel_jax.errors import UserError
from unipixel_jax.models.layers import Linear
from unipixel_jax.models.lora import LoraConfig, LoraLinear, add_lora, merge_lora, trained_biases
from unipixel_jax.models.unipixel import UniPixelModel
from unipixel_jax.train.trainable import group_of, trained

CONFIG = LoraConfig(rank=4, alpha=8, dropout=0.5)


def adapted(seed=0, config=CONFIG, model=None):
    """A model whose B is not zero."""
    model = add_lora(model or micro_model(), config, nnx.Rngs(seed))
    rng = np.random.default_rng(seed)
    for layer in adapters(model):
        layer.lora_b[...] = random(rng, *layer.lora_b.shape)
    return model


def adapters(model):
    return [m for _, m in nnx.iter_modules(model) if isinstance(m, LoraLinear)]


@jax.jit
def hidden_of(model, x):
    t = jnp.broadcast_to(jnp.arange(x.shape[1]), (3, *x.shape[:2]))
    return model.text(x, t, jnp.ones(x.shape[:2], jnp.int32))


@pytest.fixture
def x(rng):
    return random(rng, 2, 6, TEXT.hidden_size)


@pytest.mark.parametrize(("part", "places"), [("llm", {"text"}), ("visual", {"vision"}), ("all", {"text", "vision"})])
def test_adapters_lie_on_the_attention_projections(part, places):
    model = add_lora(micro_model(), dataclasses.replace(CONFIG, part=part), nnx.Rngs(0))
    expected = {"text": [f"text.blocks.attn.{n}" for n in "qkvo"], "vision": ["vision.blocks.attn.qkv", "vision.blocks.attn.proj"]}
    found = {".".join(path) for path, m in nnx.iter_modules(model) if isinstance(m, LoraLinear)}
    assert found == {name for place in places for name in expected[place]}
    assert not adapters(micro_model())


LINEAR = {
    "llm": [
        *(f"text.blocks.attn.{name}" for name in "qkvo"),
        *(f"text.blocks.mlp.{name}" for name in ("gate", "up", "down")),
        *("seg_head.mlp.fc1", "seg_head.mlp.fc2", "msk_proj.fc1", "msk_proj.fc2", "ref_proj_single", "ref_proj_double", "ref_proj", "tem_proj"),
    ],
    "visual": [
        *(f"vision.blocks.{name}" for name in ("attn.qkv", "attn.proj", "mlp.gate", "mlp.up", "mlp.down")),
        *("vision.merger.mlp.fc1", "vision.merger.mlp.fc2"),
    ],
}
"""The modules that are nn.Linear in the reference (get_target_modules), but for lm_head."""


@pytest.mark.parametrize(("part", "places"), [("llm", ["llm"]), ("visual", ["visual"]), ("all", ["llm", "visual"])])
def test_adapters_lie_on_all_linear_layers(part, places):
    config = dataclasses.replace(CONFIG, part=part, layers="linear")
    model = adapted(config=config)
    assert {".".join(path) for path, m in nnx.iter_modules(model) if isinstance(m, LoraLinear)} == {name for place in places for name in LINEAR[place]}
    plain = merge_lora(model)
    assert not adapters(plain) and jax.tree.structure(plain) == jax.tree.structure(micro_model())
    changed = not np.array_equal(plain.text.blocks.mlp.up.weight[...], micro_model().text.blocks.mlp.up.weight[...])
    assert changed == (part != "visual")
    with pytest.raises(UserError, match="has LoRA adapters already"):
        add_lora(model, CONFIG, nnx.Rngs(0))


def test_biases_that_are_trained_with_the_adapters():
    """The biases that train are those that peft marks: none, those of adapted layers, or all parameters named bias."""
    model = add_lora(micro_model(), CONFIG, nnx.Rngs(0))

    def names(bias, config=CONFIG):
        return {".".join(map(str, path)) for path in trained_biases(model, dataclasses.replace(config, bias=bias))}

    assert names("none") == set()
    assert names("lora_only") == {*(f"text.blocks.attn.{name}.bias" for name in "qkv"), "vision.blocks.attn.qkv.bias", "vision.blocks.attn.proj.bias"}
    every = {".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(model)) if path[-1] == "bias"}
    assert names("all") == every and {"vision.merger.mlp.fc1.bias", "seg_head.mlp.fc1.bias", "sam2.neck.convs.0.bias"} & every
    own = nnx.state(model, trained(("lora",), trained_biases(model, dataclasses.replace(CONFIG, bias="lora_only"))))
    assert {path[-1] for path, _ in nnx.to_flat_state(own)} == {"lora_a", "lora_b", "bias"}
    assert {group_of(path).rate for path, _ in nnx.to_flat_state(own) if path[-1] == "bias"} == {"rest"}


def test_matrices_start_as_in_peft():
    """A is uniform within 1 / sqrt(in), the same as Kaiming-uniform with a = sqrt(5); B is zero; both are float32, stacked and named."""
    model = add_lora(micro_model(), LoraConfig(rank=64), nnx.Rngs(0))
    layer = model.text.blocks.attn.q
    assert layer.lora_a.shape == (3, 64, 32) and layer.lora_b.shape == (3, 32, 64)
    assert layer.lora_a.get_metadata()["axes"] == (LAYERS, None, "embed") and layer.lora_b.get_metadata()["axes"] == (LAYERS, HEADS, None)
    a, bound = np.asarray(layer.lora_a[...]), 32**-0.5
    assert a.dtype == np.float32 and 0.99 * bound < np.abs(a).max() <= bound
    assert abs(a.std() / (bound / 3**0.5) - 1) < 0.02 and not np.array_equal(a[0], a[1])
    assert not np.any(layer.lora_b[...]) and layer.scale == 4.0
    assert LoraConfig() == LoraConfig(rank=128, alpha=256, dropout=0.1, part="all")


def test_new_adapters_add_nothing(x):
    assert np.array_equal(hidden_of(add_lora(micro_model(), CONFIG, nnx.Rngs(0)), x), hidden_of(micro_model(), x))


def test_an_adapter_by_hand(rng):
    base = micro_model().vision.merger.mlp.fc1
    layer = LoraLinear(base, CONFIG, nnx.Rngs(0))
    layer.lora_b[...] = random(rng, *layer.lora_b.shape)
    x = random(rng, 5, 96)
    a, b = (np.asarray(m[...], np.float64) for m in (layer.lora_a, layer.lora_b))
    np.testing.assert_allclose(layer(x), np.asarray(base(x), np.float64) + 2.0 * np.asarray(x, np.float64) @ a.T @ b.T, atol=2e-5)
    assert layer(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_merging_changes_nothing_that_is_computed(x):
    model = adapted()
    plain = merge_lora(model)
    assert jax.tree.structure(plain) == jax.tree.structure(micro_model())
    np.testing.assert_allclose(hidden_of(plain, x), hidden_of(model, x), rtol=1e-4, atol=1e-4)
    assert np.abs(np.asarray(hidden_of(plain, x) - hidden_of(micro_model(), x))).max() > 0.1
    assert len(adapters(model)) == 6 and type(plain.text.blocks.attn.o) is Linear and plain.text.blocks.attn.o.bias is None


def test_merging_keeps_the_dtype_of_the_weights():
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), micro_model())
    model = adapted(model=half)
    assert model.text.blocks.attn.q.lora_a.dtype == jnp.float32
    assert {a.dtype for a in jax.tree.leaves(merge_lora(model))} == {jnp.dtype("bfloat16")}


def test_unstacked_models_take_adapters_too(x):
    model = micro_model()
    loose = jax.tree.map(lambda a: a, model)
    loose.text.blocks = stacking.unstack(model.text.blocks)
    loose = add_lora(loose, dataclasses.replace(CONFIG, part="llm"), nnx.Rngs(0))
    assert len(adapters(loose)) == 4 * TEXT.num_hidden_layers
    assert adapters(loose)[0].lora_a.get_metadata()["axes"] == (None, "embed")
    np.testing.assert_allclose(hidden_of(loose, x), hidden_of(model, x), atol=1e-4)


def test_an_abstract_model_has_the_form_of_a_real_one():
    shapes = abstract(lambda rngs: add_lora(UniPixelModel(MICRO, rngs), CONFIG, rngs))
    real = add_lora(micro_model(), CONFIG, nnx.Rngs(0))
    assert jax.tree.structure(shapes) == jax.tree.structure(real)
    assert [a.shape for a in jax.tree.leaves(shapes)] == [a.shape for a in jax.tree.leaves(real)]


def test_gradients_reach_a_and_b_in_every_layer(x):
    model = adapted()
    grads = jax.jit(jax.grad(lambda m: jnp.sum(jnp.sin(m.text(x, jnp.zeros((3, 2, 6), jnp.int32), jnp.ones((2, 6), jnp.int32), remat="half")))))(model)
    for name in "qkvo":
        layer = getattr(grads.text.blocks.attn, name)
        for matrix in (layer.lora_a, layer.lora_b):
            assert np.all(np.abs(np.asarray(matrix[...])).max(axis=(1, 2)) > 0), name


def test_dropout_acts_on_the_adapter_alone(x):
    """An adapter whose B is zero ignores dropout keys. Any other drops its inputs anew in each layer, and the mean over keys is the output without dropout."""
    fresh = add_lora(micro_model(), CONFIG, nnx.Rngs(0))
    assert np.array_equal(hidden_of(with_keys(fresh, jax.random.key(0)), x), hidden_of(fresh, x))
    model = adapted()
    assert not np.allclose(hidden_of(with_keys(model, jax.random.key(0)), x), hidden_of(model, x), atol=1e-2)

    base = micro_model().vision.merger.mlp.fc1
    layer = LoraLinear(base, CONFIG, nnx.Rngs(0))
    layer.lora_b[...] = jnp.ones_like(layer.lora_b[...])
    inputs = jnp.ones((1, 4 * VISION.hidden_size))
    drawn = jax.vmap(lambda key: with_keys(Holder(layer), key).layer(inputs))(jax.random.split(jax.random.key(0), 4000))
    deviation = np.std(np.asarray(drawn), axis=0) / 4000**0.5
    assert np.all(np.abs(np.mean(np.asarray(drawn), axis=0) - layer(inputs)) < 5 * deviation)


class Holder(nnx.Module):
    def __init__(self, layer: LoraLinear) -> None:
        self.layer = layer


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"part": "vision"}, "did you mean 'visual'"),
        ({"layers": "lineer"}, "did you mean 'linear'"),
        ({"bias": "non"}, "did you mean 'none'"),
        ({"rank": 0}, "at least 1"),
        ({"dropout": 1.0}, "below 1"),
    ],
)
def test_wrong_configurations_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        add_lora(micro_model(), dataclasses.replace(CONFIG, **change), nnx.Rngs(0))


def test_adapters_are_not_put_on_adapters_nor_merged_twice():
    model = add_lora(micro_model(), dataclasses.replace(CONFIG, part="llm"), nnx.Rngs(0))
    with pytest.raises(UserError, match="already"):
        add_lora(model, CONFIG, nnx.Rngs(0))
    with pytest.raises(UserError, match="no LoRA adapters"):
        merge_lora(merge_lora(model))
