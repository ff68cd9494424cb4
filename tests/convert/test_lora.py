"""Adapters and partial files on their base, merged as peft merges them and in the reference's order."""

import json
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from converting import main
from flax import nnx
from tiny_checkpoints import TIED, TINY, as_tensors, newer_name, random_arrays, same_bits, write_adapter, write_checkpoint, write_qwen, write_sam2

from unipixel_jax.convert import sources
from unipixel_jax.convert.lora import read_adapter
from unipixel_jax.convert.safetensors_io import write_safetensors
from unipixel_jax.core.quantisation import Quantisation
from unipixel_jax.errors import UserError
from unipixel_jax.infer.loading import load

BF16 = ml_dtypes.bfloat16
TARGETS = ("model.layers.1.self_attn.q_proj.weight", "model.layers.2.self_attn.v_proj.weight", "visual.blocks.0.attn.qkv.weight")


def lora(arrays, targets=TARGETS, rank=2, dtype=np.float32):
    generator = np.random.default_rng(1)
    made = {}
    for target in targets:
        out, width = arrays[target].shape
        module = f"base_model.model.{newer_name(target)}".removesuffix(".weight")
        made[f"{module}.lora_A.weight"] = generator.standard_normal((rank, width), np.float32).astype(dtype)
        made[f"{module}.lora_B.weight"] = generator.standard_normal((out, rank), np.float32).astype(dtype)
    return made


def opened(path, base=None, sam2=None):
    return {name: tensor.load() for name, tensor in sources.open_source(path, base, sam2).tensors.items()}


def by_hand(weight, matrices, target, scale):
    """W + scale B A in float32, the matrices rounded to W's dtype first."""
    module = f"base_model.model.{newer_name(target)}".removesuffix(".weight")
    down, up = (matrices[f"{module}.lora_{letter}.weight"].astype(weight.dtype).astype(np.float32) for letter in "AB")
    return (weight.astype(np.float32) + up @ down * np.float32(scale)).astype(weight.dtype)


@pytest.mark.parametrize("dtype", [np.float32, BF16, np.float16])
@pytest.mark.parametrize("options, scale", [({}, 4), ({"use_rslora": True}, 8 / 2**0.5), ({"alpha_pattern": {"self_attn.q_proj": 1}}, None)])
def test_merge(tmp_path, dtype, options, scale):
    arrays = random_arrays(dtype=dtype)
    matrices = lora(arrays)
    path = write_adapter(tmp_path / "adapter", write_checkpoint(tmp_path / "base", arrays), matrices, {}, **options)
    found = opened(path)
    for target in TARGETS:
        expected = by_hand(arrays[target], matrices, target, scale if scale else (0.5 if "q_proj" in target else 4))
        np.testing.assert_allclose(found[target].astype(np.float32), expected.astype(np.float32), rtol=1e-6, atol=1e-6)
        assert found[target].dtype == dtype and not np.array_equal(found[target], arrays[target])
    untouched = {name: array for name, array in arrays.items() if name not in TARGETS}
    assert same_bits({name: found[name] for name in untouched}, untouched)


def test_the_partial_file_is_laid_over_the_base_before_the_merge(tmp_path, arrays, base):
    matrices = lora(arrays)
    new = {name: arrays[name] + 1 for name in ("model.embed_tokens.weight", "lm_head.weight", "seg_head.1.bias", "sam2.no_obj_ptr", TARGETS[0])}
    partial = {f"base_model.model.{newer_name(name)}": array for name, array in new.items()}
    partial[f"base_model.model.{newer_name(TARGETS[0])}".replace("q_proj.", "q_proj.base_layer.")] = partial.pop(f"base_model.model.{newer_name(TARGETS[0])}")
    found = opened(write_adapter(tmp_path / "adapter", base, matrices, partial))
    np.testing.assert_allclose(found[TARGETS[0]], by_hand(new[TARGETS[0]], matrices, TARGETS[0], 4), rtol=1e-6, atol=1e-6)
    assert all(np.array_equal(found[name], new[name]) for name in new if name != TARGETS[0])


def test_a_partial_file_alone_has_no_prefix_and_takes_the_bases_dtype(tmp_path):
    arrays = random_arrays(dtype=BF16)
    base = write_checkpoint(tmp_path / "base", arrays)
    partial = {"seg_head.3.weight": np.full((64, 64), 1.00390625, np.float32)}
    found = opened(write_adapter(tmp_path / "adapter", base, {}, partial))
    assert found["seg_head.3.weight"].dtype == BF16 and np.all(found["seg_head.3.weight"] == 1)


def test_sam2_is_laid_over_the_base_under_the_partial_file(tmp_path, arrays, base):
    other = random_arrays(seed=5)
    sam2 = write_sam2(tmp_path / "sam2.pt", other)
    path = write_adapter(tmp_path / "adapter", base, {}, {"sam2.no_obj_ptr": arrays["sam2.no_obj_ptr"] + 2})
    found = opened(path, sam2=sam2)
    np.testing.assert_array_equal(found["sam2.no_obj_ptr"], arrays["sam2.no_obj_ptr"] + 2)
    layers = [name for name in arrays if name.startswith("sam2.") and name != "sam2.no_obj_ptr"]
    assert same_bits({name: found[name] for name in layers}, {name: other[name] for name in layers})
    raw = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**raw, "sam2_checkpoint": "../sam2.pt"}))
    assert same_bits(opened(path), found)
    (path / "config.json").write_text(json.dumps({**raw, "sam2_checkpoint": "../gone.pt"}))
    np.testing.assert_array_equal(opened(path)[layers[0]], arrays[layers[0]])


def test_the_base_is_found_beside_the_directory_or_given(tmp_path, arrays, base):
    path = write_adapter(tmp_path / "adapter", base, lora(arrays), {})
    raw = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**raw, "base_model_path": "../base"}))
    found = opened(path)
    (path / "config.json").write_text(json.dumps({**raw, "base_model_path": "model_zoo/gone"}))
    with pytest.raises(UserError, match=r"trained on 'model_zoo/gone', which is not there; give its place with --base"):
        opened(path)
    assert same_bits(opened(path, base=base), found)


def test_sizes_that_the_adapters_config_lacks_are_the_bases(tmp_path, arrays, base):
    path = write_adapter(tmp_path / "adapter", base, lora(arrays), {})
    raw = json.loads((path / "config.json").read_text())
    del raw["sam2_model"]
    (path / "config.json").write_text(json.dumps(raw))
    source = sources.open_source(path)
    assert source.config == TINY and b"base_model_path" not in source.config_json


def test_a_stage_one_directory_on_plain_qwen_starts_from_the_fresh_assembly(tmp_path):
    """The assembly makes anew the tensors that training leaves out of a partial file; the rows of the new tokens are the mean."""
    arrays = random_arrays(TIED)
    qwen = write_qwen(tmp_path / "qwen", arrays, replace(TIED, text=replace(TIED.text, vocab_size=509)), 509)
    sam2 = write_sam2(tmp_path / "sam2.pt", arrays)
    base = write_checkpoint(tmp_path / "base", arrays, TIED)
    path = write_adapter(tmp_path / "adapter", base, {}, {"ref_proj.1.bias": arrays["ref_proj.1.bias"]})
    tokens = json.loads((qwen / "tokenizer.json").read_text())
    tokens["added_tokens"] += [{"id": 509 + i, "content": token} for i, token in enumerate(("<|ref|>", "<|seg|>", "<|mem|>"))]
    (path / "tokenizer.json").write_text(json.dumps(tokens))
    embedding = arrays["model.embed_tokens.weight"]
    arrays["model.embed_tokens.weight"] = embedding[:509]
    own = {name: array for name, array in arrays.items() if name.startswith(("model.", "visual."))}
    write_safetensors(qwen / "model.safetensors", as_tensors(own), {})
    found = opened(path, base=qwen, sam2=sam2)
    np.testing.assert_allclose(found["model.embed_tokens.weight"][509:], np.broadcast_to(embedding[:509].mean(0), (3, 64)), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found["ref_proj.1.bias"], arrays["ref_proj.1.bias"])
    np.testing.assert_array_equal(found["seg_head.1.bias"], np.zeros(64))


@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True},
        {"lora_bias": True},
        {"modules_to_save": ["lm_head"]},
        {"init_lora_weights": "pissa"},
        {"trainable_token_indices": [3]},
        {"rank_pattern": {".*q_proj": 2}},
        {"peft_type": "IA3"},
        {"r": 3},
        {"alora_invocation_tokens": [1, 2, 3]},
        {"use_qalora": True},
        {"init_lora_weights": "eva"},
        {"init_lora_weights": "corda"},
        {"init_lora_weights": "pissa_niter_16"},
        {"init_lora_weights": ["olora"]},
        {"eva_config": {"rho": 2}},
        {"layer_replication": [[0, 2], [1, 3]]},
        {"target_parameters": ["mlp.experts.down_proj"]},
        {"arrow_config": {"top_k": 2}},
        {"fan_in_fan_out": True},
        {"a_kind_of_later_years": {"on": True}},
    ],
)
def test_options_that_are_not_merged_are_refused_by_name(tmp_path, arrays, base, options):
    path = write_adapter(tmp_path / "adapter", base, lora(arrays), {}, **options)
    name = {"peft_type": "IA3", "r": "rank"}.get(next(iter(options)), next(iter(options)))
    with pytest.raises(UserError, match=r"\.\*q_proj" if name == "rank_pattern" else name):
        opened(path)


def test_what_a_newer_peft_writes_for_plain_lora_is_merged(tmp_path, arrays, base):
    options = {
        **dict.fromkeys(("alora_invocation_tokens", "arrow_config", "auto_mapping", "corda_config", "eva_config", "layer_replication", "modules_to_save")),
        **dict.fromkeys(("ensure_weight_tying", "fan_in_fan_out", "lora_bias", "use_qalora", "use_rslora"), False),
        **{"bias": "none", "inference_mode": True, "loftq_config": {}, "lora_dropout": 0.05, "megatron_core": "megatron.core", "peft_version": "0.18.0"},
        **{"qalora_group_size": 16, "rank_pattern": {}, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", "revision": None},
    }
    found = opened(write_adapter(tmp_path / "adapter", base, lora(arrays), {}, **options))
    assert same_bits(found, opened(write_adapter(tmp_path / "plain", base, lora(arrays), {})))


@pytest.mark.parametrize("key, value", [("lora_alpha", v) for v in (float("nan"), float("inf"), -float("inf"), 1e300, 10**400, True, "8", None, [8], {})])
@pytest.mark.parametrize("pattern", [False, True])
def test_an_alpha_that_is_no_finite_number_is_refused(arrays, key, value, pattern):
    options = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, **({"alpha_pattern": {"q_proj": value}} if pattern else {key: value})}
    with pytest.raises(UserError, match="expected a whole number from 1 and a finite number"):
        read_adapter(as_tensors(lora(arrays)), options, "here")


@pytest.mark.parametrize("rank", [0, -2, True, 2.0, "2", None, [2], float("nan")])
def test_a_rank_that_is_no_positive_whole_number_is_refused(arrays, rank):
    with pytest.raises(UserError, match="expected a whole number from 1"):
        read_adapter(as_tensors(lora(arrays)), {"peft_type": "LORA", "r": rank, "lora_alpha": 8}, "here")
    with pytest.raises(UserError, match="patterns that are no object"):
        read_adapter(as_tensors(lora(arrays)), {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "rank_pattern": [rank]}, "here")


def test_nan_in_the_file_of_options_is_refused_in_one_line(tmp_path, arrays, base, capsys):
    path = write_adapter(tmp_path / "adapter", base, lora(arrays), {}, lora_alpha=float("nan"))
    assert main(["to-jax", str(path), str(tmp_path / "jax")]) == 1
    line = capsys.readouterr().err
    assert "adapter_config.json is not JSON (NaN is no number" in line and line.count("\n") == 1


def test_a_matrix_that_is_there_twice_is_refused(arrays):
    matrices = lora(arrays)
    name = next(iter(matrices))
    for twin in (name.removeprefix("base_model.model."), f"module.{name}"):
        with pytest.raises(UserError, match="holds the same twice"):
            read_adapter(as_tensors({**matrices, twin: matrices[name]}), {"peft_type": "LORA", "r": 2, "lora_alpha": 8}, "here")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "base_model.model.module.", "module.base_model.model."])
def test_an_adapter_of_a_wrapped_model(tmp_path, arrays, base, prefix):
    matrices = lora(arrays)
    wrapped = {prefix + name.removeprefix("base_model.model."): array for name, array in matrices.items()}
    assert same_bits(opened(write_adapter(tmp_path / "wrapped", base, wrapped, {})), opened(write_adapter(tmp_path / "plain", base, matrices, {})))


def test_adapters_that_do_not_belong_to_the_base(tmp_path, arrays, base):
    matrices = lora(arrays)
    wrong = {name: array[..., :3] if ".lora_A." in name else array for name, array in matrices.items()}
    with pytest.raises(UserError, match=r"q_proj\.weight is \(64, 64\), its lora_B \(64, 2\) and lora_A \(2, 3\) do not fit"):
        opened(write_adapter(tmp_path / "a", base, wrong, {}))
    half = {name: array for name, array in matrices.items() if ".lora_B." not in name}
    with pytest.raises(UserError, match="lacks lora_A or lora_B for 3 weights"):
        opened(write_adapter(tmp_path / "b", base, half, {}))
    other = {name.replace("layers.1", "layers.11"): array for name, array in matrices.items()}
    with pytest.raises(UserError, match=r"adapts 1 weights that .* does not have: model\.layers\.11"):
        opened(write_adapter(tmp_path / "c", base, other, {}))
    with pytest.raises(UserError, match="holds 1 tensors that the base does not have: nonsense"):
        opened(write_adapter(tmp_path / "d", base, {}, {"nonsense": np.ones(3, np.float32)}))
    embedding = {name.replace("lora_A.weight", "lora_embedding_A"): array for name, array in matrices.items()}
    with pytest.raises(UserError, match="is no LoRA matrix of a linear layer"):
        opened(write_adapter(tmp_path / "e", base, embedding, {}))


def test_the_command_merges_and_the_way_back_is_a_whole_checkpoint(tmp_path, arrays, base):
    path = write_adapter(tmp_path / "adapter", base, lora(arrays), {})
    assert main(["to-jax", str(path), str(tmp_path / "jax")]) == 0
    assert main(["to-torch", str(tmp_path / "jax"), str(tmp_path / "torch")]) == 0
    assert same_bits({n: t.load() for n, t in sources.open_checkpoint(tmp_path / "torch").tensors.items()}, opened(path))
    assert (tmp_path / "torch" / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()


def test_an_adapter_is_merged_before_its_weights_are_quantised(tmp_path, arrays, base):
    """The stored whole numbers times their scales are the merged weights, to half a step."""
    path = write_adapter(tmp_path / "adapter", base, lora(arrays), {})
    for source, name in ((path, "merged"), (base, "plain")):
        assert main(["to-jax", str(source), str(tmp_path / name)]) == 0
    assert main(["quantise", str(tmp_path / "merged"), str(tmp_path / "int8"), "--weights", "int8"]) == 0
    merged, plain, stored = (weights(tmp_path / name) for name in ("merged", "plain", "int8"))
    place = ("text", "blocks", "attn", "q")
    steps = stored[(*place, "scales")][..., None]
    off = np.abs(stored[(*place, "weight")] * steps - merged[(*place, "weight")])
    assert stored[(*place, "weight")].dtype == np.int8 and np.all(off <= 0.5001 * steps)
    assert not np.array_equal(merged[(*place, "weight")], plain[(*place, "weight")])
    on_load = weights(tmp_path / "merged", Quantisation("int8"))
    assert on_load.keys() == stored.keys()
    for name, array in on_load.items():
        np.testing.assert_array_equal(array, stored[name], err_msg=str(name))


def weights(directory, how=None):
    """The arrays of a converted directory by their paths."""
    return {path: np.asarray(leaf.get_value()) for path, leaf in nnx.to_flat_state(nnx.state(load(directory, how=how).model))}
