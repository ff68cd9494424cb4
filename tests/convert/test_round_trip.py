"""torch -> JAX -> torch changes no bit, name, dtype or file; and nothing is held in memory."""

import json
import tracemalloc
import zlib
from dataclasses import replace

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from converting import main
from tiny_checkpoints import TIED, TINY, FakeTorch, as_tensors, load, newer_name, random_arrays, same_bits, torch_tensor, write_checkpoint, write_torch

from unipixel_jax.convert import sources, to_jax, to_torch
from unipixel_jax.convert.manifest import Manifest
from unipixel_jax.convert.safetensors_io import write_safetensors
from unipixel_jax.core.checkpoint import restore_model
from unipixel_jax.core.params import abstract
from unipixel_jax.errors import UserError
from unipixel_jax.models.unipixel import UniPixelModel

BF16 = ml_dtypes.bfloat16


def there_and_back(source, tmp_path):
    assert main(["to-jax", str(source), str(tmp_path / "jax")]) == 0
    assert main(["to-torch", str(tmp_path / "jax"), str(tmp_path / "torch")]) == 0
    return tmp_path / "torch"


def files(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.mark.parametrize("dtype", [np.float32, BF16, np.float16, np.float64])
@pytest.mark.parametrize("shard_bytes", [10**12, 1_000_000])
def test_every_file_is_the_same(tmp_path, dtype, shard_bytes):
    source = write_checkpoint(tmp_path / "source", random_arrays(dtype=dtype), shard_bytes=shard_bytes)
    assert files(there_and_back(source, tmp_path)) == files(source)


def test_newer_names_come_back_as_newer_names(tmp_path):
    arrays = {newer_name(name): array for name, array in random_arrays().items()}
    source = write_checkpoint(tmp_path / "source", arrays)
    assert files(there_and_back(source, tmp_path)) == files(source)


def test_mixed_dtypes_also_within_a_stack(tmp_path):
    """Layers of one stack have every dtype; an exact one for all of them is stored, and each comes back in its own."""
    kinds = [np.float32, BF16, np.float16, np.float64]
    arrays = {name: array.astype(kinds[i % 4]) for i, (name, array) in enumerate(random_arrays().items())}
    source = write_checkpoint(tmp_path / "source", arrays)
    assert same_bits(load(there_and_back(source, tmp_path)), arrays)


def test_a_tied_head_may_be_absent_or_a_copy(tmp_path):
    arrays = random_arrays(TIED)
    assert "lm_head.weight" not in arrays
    source = write_checkpoint(tmp_path / "a" / "source", arrays, TIED)
    assert files(there_and_back(source, tmp_path / "a")) == files(source)
    with_copy = {**arrays, "lm_head.weight": arrays["model.embed_tokens.weight"]}
    source = write_checkpoint(tmp_path / "b" / "source", with_copy, TIED)
    assert files(there_and_back(source, tmp_path / "b")) == files(source)
    assert not (tmp_path / "b" / "jax" / "params" / "text.head.weight").exists()
    other = {**arrays, "lm_head.weight": arrays["model.embed_tokens.weight"] + 1}
    source = write_checkpoint(tmp_path / "c" / "source", other, TIED)
    with pytest.raises(UserError, match=r"ties lm_head\.weight to model\.embed_tokens\.weight.*but the two differ"):
        sources.open_checkpoint(source)


def test_torch_files_are_read_and_come_back_as_safetensors(tmp_path):
    arrays = random_arrays(dtype=BF16)
    source = write_checkpoint(tmp_path / "source", arrays)
    (source / "model.safetensors").unlink()
    fake = FakeTorch()
    half = len(arrays) // 2
    shards = {"pytorch_model-00001-of-00002.bin": list(arrays)[:half], "pytorch_model-00002-of-00002.bin": list(arrays)[half:]}
    for file, names in shards.items():
        write_torch(source / file, {name: torch_tensor(fake, arrays[name], "npu:0", npu=True) for name in names}, fake)
    index = {"weight_map": {name: file for file, names in shards.items() for name in names}}
    (source / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert same_bits(load(there_and_back(source, tmp_path)), arrays)
    whole = write_torch(source / "pytorch_model.bin", {name: torch_tensor(fake, array) for name, array in arrays.items()}, fake)
    assert whole.is_file() and same_bits({n: t.load() for n, t in sources.open_checkpoint(source).tensors.items()}, arrays)


def test_the_model_and_orbax_see_the_same_numbers(tmp_path):
    arrays = random_arrays(dtype=BF16)
    there_and_back(write_checkpoint(tmp_path / "source", arrays), tmp_path)
    model = restore_model(tmp_path / "jax" / "params", abstract(lambda rngs: UniPixelModel(TINY, rngs=rngs)), jnp.float32)
    gate = np.stack([arrays[f"model.layers.{i}.mlp.gate_proj.weight"] for i in range(3)]).astype(np.float32)
    np.testing.assert_array_equal(np.asarray(model.text.blocks.mlp.gate.weight[...]), gate)
    kernel = arrays["visual.patch_embed.proj.weight"].reshape(48, -1).astype(np.float32)
    np.testing.assert_array_equal(np.asarray(model.vision.patch_embed.weight[...]), kernel)
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore((tmp_path / "jax" / "params").absolute())
    points = np.concatenate([arrays[f"ref_encoder.point_embeddings.{i}.weight"] for i in range(4)])
    assert tree["ref_encoder"]["point_embed"].tobytes() == points.tobytes()


def test_the_manifest_describes_every_tensor(tmp_path):
    arrays = random_arrays(dtype=np.float16)
    there_and_back(write_checkpoint(tmp_path / "source", arrays), tmp_path)
    manifest = json.loads((tmp_path / "jax" / "manifest.json").read_text())
    assert (manifest["format"], manifest["layout"], manifest["source"]["kind"]) == (1, "out_in", "checkpoint")
    expected = {
        name: {"dtype": "F16", "shape": list(array.shape), "crc32": f"{zlib.crc32(array.tobytes()):08x}", "file": "model.safetensors"}
        for name, array in arrays.items()
    }
    assert manifest["tensors"] == expected


def test_a_changed_array_is_noticed_on_the_way_back(tmp_path):
    there_and_back(write_checkpoint(tmp_path / "source", random_arrays()), tmp_path)
    chunk = tmp_path / "jax" / "params" / "text.blocks.attn.q.weight" / "1.0.0"
    chunk.write_bytes(bytes(len(chunk.read_bytes())))
    with pytest.raises(UserError, match=r"model\.layers\.1\.self_attn\.q_proj\.weight has changed since it was converted"):
        to_torch.convert(tmp_path / "jax", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_manifest_without_records_is_refused(tmp_path):
    """There would be nothing to compare the arrays with."""
    there_and_back(write_checkpoint(tmp_path / "source", random_arrays()), tmp_path)
    Manifest({"kind": "training"}, {}).write(tmp_path / "jax")
    with pytest.raises(UserError, match=r"manifest\.json.*missing"):
        to_torch.convert(tmp_path / "jax", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_memory_does_not_grow_with_the_weights(tmp_path):
    """40 MB of embeddings pass through less than 6 MB of Python's memory, both ways."""
    config = replace(TINY, text=replace(TINY.text, vocab_size=80_000))
    source = write_checkpoint(tmp_path / "source", random_arrays(config), config)
    opened = sources.open_checkpoint(source)
    to_jax.convert(opened, tmp_path / "warm")
    for step in (lambda: to_jax.convert(sources.open_checkpoint(source), tmp_path / "jax"), lambda: to_torch.convert(tmp_path / "jax", tmp_path / "torch")):
        tracemalloc.start()
        step()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 6e6
    assert files(tmp_path / "torch") == files(source)


def test_a_dry_run_checks_and_writes_nothing(tmp_path, capsys):
    arrays = random_arrays()
    source = write_checkpoint(tmp_path / "source", arrays)
    before = files(source)
    assert main(["to-jax", str(source), str(tmp_path / "jax"), "--dry-run"]) == 0
    assert main(["to-jax", str(source), "--dry-run"]) == 0
    assert "476 tensors" in capsys.readouterr().out
    assert files(source) == before and sorted(path.name for path in tmp_path.iterdir()) == ["source"]
    del arrays["seg_head.0.weight"]
    write_safetensors(source / "model.safetensors", as_tensors(arrays), {})
    assert main(["to-jax", str(source), "--dry-run"]) == 1
