"""Training's results as files: every format, read back by the converter, is the same model."""

import argparse
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from converting import main
from flax import nnx
from tiny_checkpoints import TIED, random_arrays, same_bits, write_checkpoint

from unipixel_jax.config import UniPixelConfig
from unipixel_jax.convert import sources
from unipixel_jax.convert.names import canonical
from unipixel_jax.convert.safetensors_io import read_safetensors
from unipixel_jax.core.checkpoint import restore_model
from unipixel_jax.errors import UserError
from unipixel_jax.infer.loading import load
from unipixel_jax.models.lora import LoraConfig, add_lora, merge_lora
from unipixel_jax.models.unipixel import abstract_model
from unipixel_jax.train.checkpoints.manager import CHECKPOINTS, Checkpoints
from unipixel_jax.train.checkpoints.manifest import RunInfo
from unipixel_jax.train.checkpoints.reader import named_leaves
from unipixel_jax.train.export import configure, export, run
from unipixel_jax.train.trainable import trained

NANO = Path(__file__).parents[1] / "recordings" / "nano_a" / "checkpoint"
LORA = LoraConfig(rank=3, alpha=12, dropout=0.1)
THIRD_STAGE = ("lora", "embedding", "ref", "ref_enc", "msk", "seg", "sam2")


def read(path):
    return {name: tensor.load() for name, tensor in sources.open_converted(path).tensors.items()}


def train(base, folder, parts, lora):
    """A converted start, and a run on it whose one checkpoint has other numbers in all that is trained; also the model with those numbers."""
    start, run_dir = folder / "start", folder / "run"
    assert main(["to-jax", str(base), str(start)]) == 0
    config = UniPixelConfig.from_directory(start)
    model = restore_model(start / "params", abstract_model(config))
    if lora:
        model = add_lora(model, lora, nnx.Rngs(0))
    graph, chosen, frozen = nnx.split(model, trained(parts), ...)
    generator = np.random.default_rng(3)
    chosen = jax.tree.map(lambda a: jnp.asarray(generator.normal(0, 0.3, a.shape).astype(np.float32)), chosen)
    state = {"step": jnp.int32(40), "trained": chosen, "opt_state": (jnp.zeros(3),)}
    run_info = RunInfo.of({"name": "test"}, config, parts, lora, start)
    with Checkpoints(run_dir / CHECKPOINTS, run_info, keep=1) as checkpoints:
        checkpoints.save(40, state, None)
    return start, run_dir, nnx.merge(graph, chosen, frozen)


@pytest.fixture(scope="module")
def third(tmp_path_factory):
    """A third stage on the reference's own small checkpoint."""
    return train(NANO, tmp_path_factory.mktemp("third"), THIRD_STAGE, LORA)


@pytest.fixture(scope="module")
def third_as_jax(third, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "jax"
    line = export(third[1], out)
    assert "step 40" in line and str(out) in line
    return out


def test_the_jax_export_is_the_model_with_its_adapters_merged(third, third_as_jax):
    start, _, model = third
    found, expected = load(third_as_jax), merge_lora(model)
    assert found.tokenizer is not None and found.config == load(start).config
    ours, theirs = named_leaves(nnx.state(found.model)), named_leaves(nnx.state(expected))
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name].astype(ours[name].dtype), rtol=1e-6, atol=1e-6)
    moved = {name for name, leaf in named_leaves(nnx.state(load(start).model)).items() if not np.array_equal(leaf, ours[name])}
    assert {"text/blocks/attn/q/weight", "vision/blocks/attn/qkv/weight", "text/embed/weight", "sam2/no_obj_ptr"} < moved
    assert {"text/blocks/mlp/up/weight", "text/norm/weight", "sam2/prompt_encoder/pe_matrix"}.isdisjoint(moved)


def test_the_torch_export_is_a_checkpoint_that_converts_to_the_same_bits(third, third_as_jax, tmp_path):
    export(third[1], tmp_path / "torch", "torch", step=40)
    assert main(["to-jax", str(tmp_path / "torch"), str(tmp_path / "back")]) == 0
    assert same_bits(read(tmp_path / "back"), read(third_as_jax))
    saved, original = (read_safetensors(path / "model.safetensors") for path in (tmp_path / "torch", NANO))
    assert {n: (t.dtype, t.shape) for n, t in saved.tensors.items()} == {n: (t.dtype, t.shape) for n, t in original.tensors.items()}
    assert saved.metadata == {"format": "pt"}
    assert (tmp_path / "torch" / "tokenizer.json").read_bytes() == (NANO / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("on", ["torch", "jax"])
def test_the_adapter_on_its_base_converts_to_the_same_bits(third, third_as_jax, tmp_path, on):
    export(third[1], tmp_path / "adapter", "adapter")
    base = [] if on == "torch" else ["--base", str(third[0])]
    assert main(["to-jax", str(tmp_path / "adapter"), str(tmp_path / "back"), *base]) == 0
    assert same_bits(read(tmp_path / "back"), read(third_as_jax))


def test_the_adapters_files_are_named_as_the_references(third, tmp_path):
    """Names from a recording of the reference's trainer and of peft."""
    export(third[1], tmp_path / "adapter", "adapter")
    recorded = NANO.parent / "adapter"
    ours, theirs = (read_safetensors(path / "adapter_model.safetensors") for path in (tmp_path / "adapter", recorded))
    assert theirs.tensors.keys() == ours.tensors.keys() and ours.metadata == theirs.metadata
    ours, theirs = (read_safetensors(path / "pytorch_model.safetensors") for path in (tmp_path / "adapter", recorded))
    assert {n: t.shape for n, t in theirs.tensors.items()}.items() <= {n: t.shape for n, t in ours.tensors.items()}.items()
    assert ours.metadata == theirs.metadata
    ours, theirs = (json.loads((path / "adapter_config.json").read_text()) for path in (tmp_path / "adapter", recorded))
    assert ours.keys() <= theirs.keys()
    # peft shortens names to endings that still say which modules are meant
    assert all(name.endswith(tuple(theirs["target_modules"])) for name in ours["target_modules"])
    assert (ours["r"], ours["lora_alpha"], ours["lora_dropout"], ours["base_model_name_or_path"]) == (3, 12, 0.1, str(NANO))
    assert all(ours[key] == theirs[key] for key in ("bias", "peft_type", "task_type", "use_dora", "use_rslora", "init_lora_weights"))


@pytest.fixture(scope="module")
def half_base(tmp_path_factory):
    """A checkpoint in bfloat16 whose head is the embedding."""
    return write_checkpoint(tmp_path_factory.mktemp("half") / "base", random_arrays(TIED, ml_dtypes.bfloat16), TIED)


def test_all_formats_agree_in_bfloat16_with_a_tied_head(half_base, tmp_path):
    _, run_dir, _ = train(half_base, tmp_path, THIRD_STAGE, LORA)
    for format in ("jax", "torch", "adapter"):
        export(run_dir, tmp_path / format, format)
    for format in ("torch", "adapter"):
        assert main(["to-jax", str(tmp_path / format), str(tmp_path / f"{format}-back")]) == 0
        assert same_bits(read(tmp_path / f"{format}-back"), read(tmp_path / "jax"))
    files = [read_safetensors(tmp_path / "adapter" / file).tensors for file in ("adapter_model.safetensors", "pytorch_model.safetensors")]
    assert {tensor.dtype for tensors in files for tensor in tensors.values()} == {"BF16"}
    assert "lm_head.weight" not in {canonical(name) for name in files[1]}


def test_a_stage_without_lora_leaves_a_partial_file_for_the_next_one(half_base, tmp_path):
    start, run_dir, _ = train(half_base, tmp_path, ("ref", "projector"), None)
    export(run_dir, tmp_path / "partial", "adapter")
    names = list(read_safetensors(tmp_path / "partial" / "pytorch_model.safetensors").tensors)
    assert {"ref_proj.1.weight", "tem_emb.weight", "model.visual.merger.mlp.2.bias"} < set(names) and len(names) == 14
    assert not (tmp_path / "partial" / "adapter_model.safetensors").exists()
    export(run_dir, tmp_path / "jax")
    assert main(["to-jax", str(start), str(tmp_path / "next"), "--partial", str(tmp_path / "partial")]) == 0
    assert same_bits(read(tmp_path / "next"), read(tmp_path / "jax"))


def test_a_base_is_asked_for_where_none_has_what_was_not_trained(half_base, tmp_path):
    _, run_dir, _ = train(half_base, tmp_path, ("ref",), None)
    export(run_dir, tmp_path / "ref", "adapter")
    assert main(["to-jax", str(half_base), str(tmp_path / "second"), "--partial", str(tmp_path / "ref")]) == 0
    config = TIED
    for name, parts, lost in (("seg", ("seg",), True), ("both", ("ref", "seg"), False)):
        model = restore_model(tmp_path / "second" / "params", abstract_model(config))
        chosen = nnx.state(model, trained(parts))
        with Checkpoints(tmp_path / name / CHECKPOINTS, RunInfo.of({}, config, parts, None, tmp_path / "second"), keep=1) as checkpoints:
            checkpoints.save(1, {"step": jnp.int32(1), "trained": nnx.to_pure_dict(chosen)}, None)
        if lost:
            with pytest.raises(UserError, match=r"second holds .*ref_proj.* of partial files.*convert to-torch .*second BASE, and name it with --base BASE"):
                export(tmp_path / name, tmp_path / f"{name}-out", "adapter")
            export(tmp_path / name, tmp_path / f"{name}-out", "adapter", base="torch-base")
            assert json.loads((tmp_path / f"{name}-out" / "config.json").read_text())["base_model_path"] == "torch-base"
        else:
            export(tmp_path / name, tmp_path / f"{name}-out", "adapter")
            assert json.loads((tmp_path / f"{name}-out" / "config.json").read_text())["base_model_path"] == str(half_base)


def test_what_cannot_be_exported(third, tmp_path):
    start, run_dir, _ = third
    with pytest.raises(UserError, match="format 'onnx' is unknown, expected one of jax, torch, adapter"):
        export(run_dir, tmp_path / "out", "onnx")
    with pytest.raises(UserError, match="goes with --format adapter"):
        export(run_dir, tmp_path / "out", base="somewhere")
    with pytest.raises(UserError, match="holds no checkpoint"):
        export(tmp_path, tmp_path / "out")
    with pytest.raises(UserError, match="no checkpoint of step 7, only of 40"):
        export(run_dir, tmp_path / "out", step=7)
    with pytest.raises(UserError, match=r"gone, from which training started, is not there; say where it lies now with --start"):
        export(run_dir, tmp_path / "out", start=tmp_path / "gone")
    with pytest.raises(UserError, match=r"manifest\.json does not exist"):
        export(run_dir, tmp_path / "out", start=tmp_path)
    shutil.copytree(start, tmp_path / "other")
    manifest = json.loads((tmp_path / "other" / "manifest.json").read_text())
    next(iter(manifest["tensors"].values()))["crc32"] = "00000000"
    (tmp_path / "other" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="other holds other weights than training started from"):
        export(run_dir, tmp_path / "out", start=tmp_path / "other")
    with pytest.raises(UserError, match="lies in the output"):
        export(run_dir, start.parent, force=True)
    assert not (tmp_path / "out").exists()


def test_the_command(third, tmp_path, capsys):
    parser = argparse.ArgumentParser()
    configure(parser)
    words = [str(third[1]), str(tmp_path / "out"), "--format", "adapter", "--step", "40", "--start", str(third[0]), "--base", "base"]
    assert run(parser.parse_args(words)) == 0
    assert "tensors of step 40, a peft adapter" in capsys.readouterr().out
    (tmp_path / "out" / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="exists and is not empty"):
        run(parser.parse_args(words))
    assert run(parser.parse_args([*words, "--force"])) == 0
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["peft_type"] == "LORA"


def test_what_identifies_a_run(third, tmp_path):
    """Another dropout, a start that moved: the same run. Another rank, other weights: another one."""
    start, _, model = third
    shutil.copytree(start, tmp_path / "moved")
    run_info = lambda lora, place: RunInfo.of({}, model.config, THIRD_STAGE, lora, place)  # noqa: E731
    first = run_info(LORA, start)
    first.require_same(run_info(LoraConfig(**asdict(LORA) | {"dropout": 0.5}), tmp_path / "moved"), "here")
    with pytest.raises(UserError, match=r"lora\.rank is 3 here, 4 there"):
        first.require_same(run_info(LoraConfig(**asdict(LORA) | {"rank": 4}), start), "here")
    with pytest.raises(UserError, match=r"trained is .* here, \[\"seg\"\] there"):
        first.require_same(RunInfo.of({}, model.config, ["seg"], LORA, start), "here")
