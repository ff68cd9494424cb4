"""Partial files of earlier stages, laid over a model on the way to JAX."""

import json

import numpy as np
import pytest
from converting import main
from tiny_checkpoints import (
    TINY,
    as_tensors,
    newer_name,
    random_arrays,
    same_bits,
    write_adapter,
    write_qwen,
    write_sam2,
)

from unipixel_jax.convert import sources
from unipixel_jax.convert.manifest import Manifest
from unipixel_jax.convert.names import canonical, newer
from unipixel_jax.convert.safetensors_io import write_safetensors
from unipixel_jax.errors import UserError


def read(path):
    return {name: tensor.load() for name, tensor in sources.open_converted(path).tensors.items()}


def stage(path, names, seed):
    """Write the file that the reference's trainer leaves without LoRA, whose names have no prefix."""
    other = random_arrays(seed=seed)
    path.mkdir()
    write_safetensors(path / "pytorch_model.safetensors", as_tensors({newer_name(name): other[name] for name in names}), {})
    return {name: other[name] for name in names}


REF = ("ref_proj.1.weight", "tem_emb.weight", "visual.merger.ln_q.weight")
SEG = ("seg_head.1.weight", "ref_proj.1.weight")


def test_a_third_stage_starts_from_a_base_and_two_partial_files_a_later_one_wins(tmp_path, arrays, base):
    ref, seg = stage(tmp_path / "ref", REF, 1), stage(tmp_path / "seg", SEG, 2)
    expected = arrays | ref | seg
    paths = [str(tmp_path / "seg" / "pytorch_model.safetensors"), str(tmp_path / "ref")]
    assert main(["to-jax", str(base), str(tmp_path / "a"), "--partial", paths[1], "--partial", paths[0]]) == 0
    assert same_bits(read(tmp_path / "a"), {name: expected[name] for name in read(tmp_path / "a")})
    # over a converted directory: the same
    assert main(["to-jax", str(base), str(tmp_path / "plain")]) == 0
    assert main(["to-jax", str(tmp_path / "plain"), str(tmp_path / "b"), "--partial", paths[1], "--partial", paths[0]]) == 0
    assert same_bits(read(tmp_path / "b"), read(tmp_path / "a"))
    # and one after the other
    assert main(["to-jax", str(tmp_path / "plain"), str(tmp_path / "c1"), "--partial", paths[1]]) == 0
    assert main(["to-jax", str(tmp_path / "c1"), str(tmp_path / "c"), "--partial", paths[0]]) == 0
    assert same_bits(read(tmp_path / "c"), read(tmp_path / "a"))
    source = Manifest.read(tmp_path / "c").source
    assert source["kind"] == "checkpoint" and source["partial"] == [paths[1], paths[0]] and source["overlaid"] == [*REF, "seg_head.1.weight"]


def test_the_way_back_to_torch_has_the_partial_files_in_the_files_of_the_base(tmp_path, arrays, base):
    ref = stage(tmp_path / "ref", REF, 1)
    assert main(["to-jax", str(base), str(tmp_path / "jax"), "--partial", str(tmp_path / "ref")]) == 0
    assert main(["to-torch", str(tmp_path / "jax"), str(tmp_path / "torch")]) == 0
    found = {name: tensor.load() for name, tensor in sources.open_checkpoint(tmp_path / "torch").tensors.items()}
    assert same_bits(found, arrays | ref)


def test_a_fresh_start_with_partial_files(tmp_path, arrays):
    qwen, sam2 = write_qwen(tmp_path / "qwen", arrays, TINY, 505), write_sam2(tmp_path / "sam2.pt", arrays)
    sizes = tmp_path / "sizes.json"
    sizes.write_text(json.dumps(vars(TINY.sam2)))
    seg = stage(tmp_path / "seg", SEG, 2)
    command = ["to-jax", "--qwen", str(qwen), "--sam2", str(sam2), "--sam2-size", str(sizes), str(tmp_path / "jax"), "--partial", str(tmp_path / "seg")]
    assert main(command) == 0
    found = read(tmp_path / "jax")
    assert all(np.array_equal(found[name], seg[name]) for name in SEG)
    assert np.array_equal(found["sam2.no_obj_ptr"], arrays["sam2.no_obj_ptr"])


def test_an_adapter_on_a_converted_base(tmp_path, arrays, base):
    assert main(["to-jax", str(base), str(tmp_path / "jax")]) == 0
    path = write_adapter(tmp_path / "adapter", base, {}, {"seg_head.1.bias": arrays["seg_head.1.bias"] + 1})
    on_torch, on_jax = (sources.open_source(path, place) for place in (base, tmp_path / "jax"))
    assert same_bits({n: t.load() for n, t in on_torch.tensors.items()}, {n: t.load() for n, t in on_jax.tensors.items()})


def test_what_is_no_partial_file_is_refused(tmp_path, arrays, base, capsys):
    with pytest.raises(UserError, match=r"gone does not exist"):
        sources.open_source(base, partials=[tmp_path / "gone"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty/pytorch_model\.safetensors does not exist"):
        sources.open_source(base, partials=[tmp_path / "empty"])
    (tmp_path / "odd").mkdir()
    write_safetensors(tmp_path / "odd" / "pytorch_model.safetensors", as_tensors({"nonsense": np.ones(3, np.float32)}), {})
    with pytest.raises(UserError, match=r"holds 1 tensors that the base does not have: nonsense"):
        sources.open_source(base, partials=[tmp_path / "odd"])
    adapter = write_adapter(tmp_path / "adapter", base, {"x.lora_A.weight": np.ones((2, 2), np.float32)}, {"seg_head.1.bias": arrays["seg_head.1.bias"]})
    with pytest.raises(UserError, match=r"belongs to the LoRA adapter adapter_model\.safetensors beside it; convert .*adapter itself"):
        sources.open_source(base, partials=[adapter])
    assert main(["to-jax", str(base), str(tmp_path / "jax")]) == 0
    assert main(["to-jax", str(tmp_path / "jax"), str(tmp_path / "again")]) == 1
    assert "converted already" in capsys.readouterr().err
    (tmp_path / "jax" / "params" / "seg_head.norm.weight" / "0").write_bytes(bytes(256))
    with pytest.raises(UserError, match=r"seg_head\.0\.weight has changed since it was converted"):
        read(tmp_path / "jax")


def test_a_partial_tensor_of_another_shape_is_refused(tmp_path, base):
    (tmp_path / "odd").mkdir()
    write_safetensors(tmp_path / "odd" / "pytorch_model.safetensors", as_tensors({"seg_head.1.bias": np.ones(3, np.float32)}), {})
    assert main(["to-jax", str(base), str(tmp_path / "jax"), "--partial", str(tmp_path / "odd")]) == 1
    assert not (tmp_path / "jax").exists()


def test_newer_names_are_the_way_back_of_canonical_ones(arrays):
    assert all(newer(name) == newer_name(name) and canonical(newer(name)) == name for name in arrays)
