"""A fresh start from Qwen2.5-VL and SAM 2.1. The same assembly by the reference gave the same numbers where they are not random."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from converting import main
from tiny_checkpoints import TIED, TINY, FakeTorch, as_tensors, random_arrays, sam2_state, torch_shapes, torch_tensor, write_qwen, write_sam2, write_torch

from unipixel_jax.config import SAM2_SIZES
from unipixel_jax.convert import fresh, sources, to_jax
from unipixel_jax.convert.tensors import Tensor
from unipixel_jax.errors import UserError

BF16 = ml_dtypes.bfloat16
NEW = ("<|ref|>", "<|seg|>", "<|mem|>")


@pytest.fixture
def sizes(tmp_path):
    path = tmp_path / "sizes.json"
    path.write_text(json.dumps(asdict(TINY.sam2)))
    return str(path)


def made(tmp_path, sizes, config=TINY, vocabulary=509, tokens=509, dtype=np.float32, npu=False, seed=0):
    shrunk = replace(config, text=replace(config.text, vocab_size=vocabulary))
    arrays = random_arrays(shrunk, dtype)
    qwen = write_qwen(tmp_path / f"qwen{seed}", arrays, shrunk, tokens)
    sam2 = write_sam2(tmp_path / f"sam2.1_{seed}.pt", {name: array.astype(np.float32) for name, array in arrays.items()}, npu)
    source = sources.open_fresh(qwen, sam2, sizes, 768, seed)
    return arrays, source, {name: tensor.load() for name, tensor in source.tensors.items()}


@pytest.mark.parametrize("config", [TINY, TIED])
@pytest.mark.parametrize("dtype", [np.float32, BF16])
def test_new_rows_are_the_mean_and_old_ones_stay(tmp_path, sizes, config, dtype):
    arrays, source, found = made(tmp_path, sizes, config, dtype=dtype)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name not in arrays:
            assert config is TIED and name not in found
            continue
        assert found[name].shape == (512, 64) and found[name].dtype == dtype
        assert found[name][:509].tobytes() == arrays[name].tobytes()
        mean = arrays[name].astype(np.float64).mean(0).astype(dtype)
        assert np.array_equal(found[name][509:], np.broadcast_to(mean, (3, 64)))
    assert source.config.text.vocab_size == 512
    assert (source.config.ref_token_id, source.config.seg_token_id, source.config.mem_token_id) == (509, 510, 511)


def test_a_vocabulary_with_room_does_not_grow(tmp_path, sizes):
    """The published Qwen2.5-VL's embedding has more rows than its tokenizer has tokens, and then the reference changes no row."""
    arrays, source, found = made(tmp_path, sizes, vocabulary=512, tokens=500)
    assert found["model.embed_tokens.weight"].tobytes() == arrays["model.embed_tokens.weight"].tobytes()
    assert source.config.text.vocab_size == 512 and source.config.ref_token_id == 500


def test_copies_and_new_layers(tmp_path, sizes):
    arrays, _, found = made(tmp_path, sizes)
    for name in arrays:
        if name.startswith(("sam2.", "visual.")) or name.startswith("model.layers."):
            assert found[name].tobytes() == arrays[name].tobytes(), name
        if name.startswith("ref_encoder."):
            assert found[name].tobytes() == arrays[name.replace("ref_encoder.", "sam2.sam_prompt_encoder.")].tobytes(), name
        if name.startswith("msk_proj."):
            assert found[name].tobytes() == arrays[name.replace("msk_proj.", "visual.merger.mlp.")].tobytes(), name
    for layer in ("seg_head.1", "seg_head.3", "ref_proj_single", "ref_proj_double", "ref_proj.1", "tem_proj"):
        weight, bound = found[f"{layer}.weight"], np.sqrt(6 / sum(found[f"{layer}.weight"].shape))
        assert not found[f"{layer}.bias"].any()
        assert 0.98 * bound < abs(weight).max() <= bound and abs(weight.std() - bound / np.sqrt(3)) < 0.05 * bound
    assert np.all(found["seg_head.0.weight"] == 1)
    assert 0.01 < found["tem_emb.weight"].std() < 0.03 and 0.5 < found["tem_pe.positional_encoding_gaussian_matrix"].std() < 1.5
    assert found.keys() == arrays.keys()


def test_the_seed_decides_the_random_numbers(tmp_path, sizes):
    _, source, first = made(tmp_path, sizes)
    again = {name: tensor.load() for name, tensor in source.tensors.items()}
    _, _, other = made(tmp_path, sizes, seed=1)
    assert all(first[name].tobytes() == again[name].tobytes() for name in first)
    assert not np.array_equal(first["seg_head.1.weight"], other["seg_head.1.weight"])
    assert np.array_equal(first["msk_proj.0.weight"], other["msk_proj.0.weight"])


def test_everything_takes_qwens_dtype_also_from_an_npu_file(tmp_path, sizes):
    _, _, found = made(tmp_path, sizes, dtype=BF16, npu=True)
    assert {array.dtype for array in found.values()} == {np.dtype(BF16)}


@pytest.mark.parametrize("name", SAM2_SIZES)
def test_the_published_sizes_are_known_by_their_weights(name, tmp_path):
    size = SAM2_SIZES[name]
    config = replace(TINY, sam2=replace(size, image_size=512))
    tensors = {n: Tensor("F32", shape, lambda: iter(())) for n, shape in torch_shapes(config).items() if n.startswith("sam2.")}
    assert fresh.sam2_sizes(None, tensors, 512, tmp_path) == config.sam2
    assert fresh.sam2_config_name(config.sam2).endswith({"tiny": "_t", "small": "_s", "base_plus": "_b+", "large": "_l"}[name])


def test_other_sizes_must_be_described(tmp_path, sizes):
    arrays = random_arrays()
    tensors = fresh.sam2_tensors(as_tensors(sam2_state(arrays)))
    assert tensors.keys() == {name for name in arrays if name.startswith("sam2.")}
    with pytest.raises(UserError, match=r"width 16 and stages \(1, 2, 3, 1\).*--sam2-size FILE\.json"):
        fresh.sam2_sizes(None, tensors, 768, tmp_path / "x.pt")
    assert fresh.sam2_sizes(sizes, tensors, 768, tmp_path) == TINY.sam2
    (tmp_path / "short.json").write_text('{"embed_dim": 16}')
    with pytest.raises(UserError, match="lacking or unknown: d_model, fuser_layers"):
        fresh.sam2_sizes(str(tmp_path / "short.json"), tensors, 768, tmp_path)
    with pytest.raises(UserError, match=r"expected a SAM 2\.1 checkpoint"):
        fresh.sam2_sizes(None, {}, 768, tmp_path)


def test_the_command_writes_tokens_ids_and_a_whole_directory(tmp_path, sizes, capsys):
    arrays = random_arrays(replace(TINY, text=replace(TINY.text, vocab_size=509)))
    qwen = write_qwen(tmp_path / "qwen", arrays, replace(TINY, text=replace(TINY.text, vocab_size=509)), 509)
    sam2 = write_sam2(tmp_path / "sam2.pt", arrays)
    before = (qwen / "tokenizer.json").read_bytes()
    start = ["to-jax", "--qwen", str(qwen), "--sam2", str(sam2), "--sam2-size", sizes]
    assert main([*start, str(tmp_path / "jax")]) == 0
    tokens = json.loads((tmp_path / "jax" / "tokenizer.json").read_text())
    assert [(t["content"], t["id"], t["special"]) for t in tokens["added_tokens"][-3:]] == [(token, 509 + i, True) for i, token in enumerate(NEW)]
    settings = json.loads((tmp_path / "jax" / "tokenizer_config.json").read_text())
    assert settings["added_tokens_decoder"]["510"]["content"] == "<|seg|>" and settings["additional_special_tokens"] == list(NEW)
    assert (qwen / "tokenizer.json").read_bytes() == before
    assert main(["to-torch", str(tmp_path / "jax"), str(tmp_path / "torch")]) == 0
    source = sources.open_checkpoint(tmp_path / "torch")
    assert source.config.sam2 == TINY.sam2 and source.config.seg_token_id == 510
    assert to_jax.check(source).tensors == 476
    assert main(["to-jax", str(qwen), str(tmp_path / "x")]) == 1
    assert "to assemble a fresh one" in capsys.readouterr().err
    assert main(["to-jax", "--qwen", str(tmp_path / "torch"), "--sam2", str(sam2), str(tmp_path / "x")]) == 1
    assert "expected a plain Qwen2.5-VL" in capsys.readouterr().err


def test_hidden_tokens_and_image_size_are_chosen_at_the_start(tmp_path, sizes):
    """They give the head its width, and are in the configuration that every stage after it reads."""
    arrays = random_arrays()
    qwen = write_qwen(tmp_path / "qwen", arrays, TINY, 500)
    sam2 = write_sam2(tmp_path / "sam2.pt", arrays)
    base = json.loads(Path(sizes).read_text())
    Path(sizes).write_text(json.dumps(base | {"image_size": 160}))
    source = sources.open_fresh(qwen, sam2, sizes, 768, 0, hidden_tokens=3)
    assert (source.config.sam2_hidden_tokens, source.config.sam2.image_size) == (3, 160)
    assert (json.loads(source.config_json)["sam2_hidden_tokens"], json.loads(source.config_json)["sam2_image_size"]) == (3, 160)
    assert source.tensors["seg_head.3.weight"].shape[0] == 3 * source.config.sam2.d_model
    with pytest.raises(SystemExit):
        main(["to-jax", "--qwen", str(qwen), "--sam2", str(sam2), "--hidden-tokens", "0", str(tmp_path / "other")])


def test_sam2_files_of_another_version_are_listed(tmp_path, sizes):
    arrays = random_arrays()
    qwen = write_qwen(tmp_path / "qwen", arrays, TINY, 500)
    old = {name: array for name, array in sam2_state(arrays).items() if not name.startswith(("no_obj_embed", "obj_ptr_tpos"))}
    fake = FakeTorch()
    path = write_torch(tmp_path / "sam2.pt", {"model": {name: torch_tensor(fake, array) for name, array in old.items()}}, fake)
    with pytest.raises(UserError, match=r"3 missing: sam2\.no_obj_embed_spatial, sam2\.obj_ptr_tpos_proj\.weight"):
        to_jax.check(sources.open_fresh(qwen, path, sizes, 768, 0))
