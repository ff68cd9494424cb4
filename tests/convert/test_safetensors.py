"""Our reader and writer of safetensors files."""

import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from tiny_checkpoints import as_tensors

from unipixel_jax.convert.safetensors_io import plan_shards, read_index, read_safetensors, write_safetensors
from unipixel_jax.convert.tensors import CODES, DTYPES, Tensor
from unipixel_jax.errors import UserError


@pytest.fixture
def arrays():
    generator = np.random.default_rng(0)
    made = {f"t.{code}": generator.integers(0, 2, (3, 5)).astype(dtype) for code, dtype in DTYPES.items()}
    return made | {"scalar": np.array(1.5, np.float32), "empty": np.zeros((0, 4), np.float32), "größe": np.ones(2, np.float32)}


def test_every_dtype_comes_back(tmp_path, arrays):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, as_tensors(arrays), {"format": "pt", "a": "b"})
    found = read_safetensors(path)
    assert list(found.tensors) == list(arrays) and found.metadata == {"format": "pt", "a": "b"}
    for name, array in arrays.items():
        tensor = found.tensors[name]
        assert (tensor.dtype, tensor.shape) == (CODES[array.dtype], array.shape)
        assert tensor.load().tobytes() == array.tobytes()


def test_other_readers_agree(tmp_path, arrays):
    path = tmp_path / "x.safetensors"
    plain = {name: array for name, array in arrays.items() if array.dtype.kind in "biuf" and not array.dtype.name.startswith("float8")}
    write_safetensors(path, as_tensors(plain), {})
    theirs = load_file(path)
    assert theirs.keys() == plain.keys() and all(theirs[name].tobytes() == plain[name].tobytes() for name in plain)
    save_file(plain, path)
    ours = read_safetensors(path).tensors
    assert ours.keys() == plain.keys() and all(ours[name].load().tobytes() == plain[name].tobytes() for name in plain)


def test_a_tensor_larger_than_a_block(tmp_path):
    array = np.random.default_rng(0).integers(0, 255, 3_000_001).astype(np.uint8)
    write_safetensors(tmp_path / "x.safetensors", as_tensors({"a": array}), {})
    tensor = read_safetensors(tmp_path / "x.safetensors").tensors["a"]
    assert len(list(tensor.blocks())) == 3
    np.testing.assert_array_equal(tensor.load(), array)


@pytest.mark.parametrize("cut", [1, 100, 1000])
def test_truncation_is_seen_from_the_header(tmp_path, arrays, cut):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, as_tensors(arrays), {})
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(UserError, match=r"truncated|cut off|damaged"):
        read_safetensors(path)


def header(entries):
    raw = json.dumps(entries).encode()
    return struct.pack("<Q", len(raw)) + raw


ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "no safetensors file"),
        (b"hello, this is no tensor file", "no safetensors file"),
        (struct.pack("<Q", 4) + b"{{{{", "damaged header"),
        (struct.pack("<Q", 2) + b"[]", "damaged header"),
        (header({"a": ONE}) + bytes(8), "truncated or damaged"),
        (header({"a": {**ONE, "dtype": "F4"}}) + bytes(4), "dtype F4"),
        (header({"a": {**ONE, "shape": [2]}}) + bytes(4), "expected 0..8"),
        (header({"a": {**ONE, "shape": [-1, -1]}}) + bytes(4), "must be whole numbers"),
        (header({"a": {**ONE, "shape": [True]}}) + bytes(4), "must be whole numbers"),
        (header({"a": {**ONE, "shape": [1.0]}}) + bytes(4), "must be whole numbers"),
        (header({"a": {**ONE, "shape": [10**30]}}) + bytes(4), "must be whole numbers"),
        (header({"a": {**ONE, "shape": [1] * 10**4}}) + bytes(4), "10000 axes"),
        (header({"a": {**ONE, "shape": {}}}) + bytes(4), "damaged header"),
        (header({"a": {**ONE, "dtype": ["F32"]}}) + bytes(4), "damaged header"),
        (header({"a": {**ONE, "data_offsets": [0, 4, 8]}}) + bytes(4), "damaged header"),
        (header({"a": ONE, "__metadata__": {"format": {}}}) + bytes(4), "damaged header"),
        (struct.pack("<Q", 200_000) + b"[" * 200_000, "damaged header"),
        (struct.pack("<Q", 2**40), "no safetensors file"),
        (header({"a": ONE, "b": {**ONE, "data_offsets": [2, 6]}}) + bytes(6), "expected 4..8"),
        (header({"a": {"dtype": "F32"}}), "damaged header"),
    ],
)
def test_damaged_headers(tmp_path, content, message):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_safetensors(path)


def test_the_file_shrinks_after_it_was_opened(tmp_path):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, as_tensors({"a": np.ones(100, np.float32)}), {})
    tensor = read_safetensors(path).tensors["a"]
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match="ends 8 bytes early"):
        tensor.load()
    path.unlink()
    with pytest.raises(UserError, match="is missing"):
        tensor.load()


def test_a_writer_notices_a_tensor_of_another_size(tmp_path):
    with pytest.raises(ValueError, match="wrote 3 bytes, expected 8"):
        write_safetensors(tmp_path / "x.safetensors", {"a": Tensor("F32", (2,), lambda: iter([memoryview(b"abc")]))}, {})


def test_an_index_with_a_missing_shard_or_of_another_kind(tmp_path):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "../two.safetensors"}}))
    with pytest.raises(UserError, match=r"names the shard '\.\./two\.safetensors', expected a file beside it"):
        read_index(path)
    path.write_text('{"weight_map": {"a": "one.safetensors"}}')
    with pytest.raises(UserError, match=r"lacks 1 of 1 shards: one\.safetensors"):
        read_index(path)
    for content, message in (
        ("[]", "holds a list"),
        ("{}", "no index of shards"),
        ('{"weight_map": {"a": 3}}', "names the shard 3"),
        ('{"weight_map": {"a": null}}', "names the shard None"),
        ("[" * 10**5, "nested too deeply"),
    ):
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            read_index(path)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=40), st.integers(1, 100))
def test_shards_hold_every_tensor_once_and_keep_to_the_limit(sizes, limit):
    named = {str(i): size for i, size in enumerate(sizes)}
    shards = plan_shards(named, limit)
    assert [name for names in shards.values() for name in names] == list(named)
    assert all(sum(named[name] for name in names) <= limit or len(names) == 1 for names in shards.values())
    assert list(shards) == sorted(shards) and (len(shards) > 1 or list(shards) == ["model.safetensors"])
