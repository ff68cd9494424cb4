"""Files that a stranger made: each gets one line that names it, and nothing in it is run, reads elsewhere, writes elsewhere or exhausts the machine."""

import json
import os
import shutil
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
from converting import main
from tiny_checkpoints import (
    TINY,
    Call,
    FakeTorch,
    Storage,
    random_arrays,
    torch_tensor,
    write_adapter,
    write_checkpoint,
    write_qwen,
    write_sam2,
    write_torch,
)

from unipixel_jax.convert.torch_pickle import read_torch
from unipixel_jax.convert.weights import read_file
from unipixel_jax.errors import UserError

FLOATS = np.arange(6, dtype=np.float32)


@pytest.fixture(scope="module")
def arrays():
    return random_arrays()


@pytest.fixture(scope="module")
def jax_directory(tmp_path_factory, arrays):
    folder = tmp_path_factory.mktemp("converted")
    assert main(["to-jax", str(write_checkpoint(folder / "source", arrays)), str(folder / "jax")]) == 0
    return folder / "jax"


def refused(capsys, *args):
    """Run a command that must fail; gives its one line."""
    capsys.readouterr()
    assert main([str(arg) for arg in args]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert "should not happen" not in captured.err and len(captured.err) < 5000
    return captured.err


def edit(path, change):
    """Change a JSON file in place."""
    value = json.loads(path.read_text())
    path.write_text(json.dumps(change(value) or value))


# Torch's archives


def archive(path, program, members=(), **options):
    with zipfile.ZipFile(path, "w", **options) as target:
        target.writestr("x/data.pkl", program)
        for name, data in members:
            target.writestr(f"x/{name}", data)
    return path


def patched(path, offset, value):
    """The archive with two bytes of its member's two headers changed."""
    raw = bytearray(path.read_bytes())
    for signature, start in ((b"PK\x03\x04", 0), (b"PK\x01\x02", 2)):
        place = raw.index(signature) + start + offset
        raw[place : place + 2] = struct.pack("<H", value)
    path.write_bytes(bytes(raw))
    return path


@pytest.mark.parametrize(
    "offset, value, message",
    [(6, 1, "is encrypted"), (8, 99, "compressed members"), (8, 8, "compressed members"), (4, 255, "zip file version 25.5"), (6, 0x20, "patched data")],
)
def test_zips_that_no_torch_writes(tmp_path, offset, value, message):
    path = patched(archive(tmp_path / "x.pt", b"\x80\x02}."), offset, value)
    with pytest.raises(UserError, match=message):
        read_torch(path)


def test_small_archives_do_not_become_gigabytes(tmp_path):
    bomb = archive(tmp_path / "bomb.pt", b"\x80\x02" + b"N" * (1 << 26), compression=zipfile.ZIP_DEFLATED)
    order = archive(tmp_path / "order.pt", b"\x80\x02}.", [("byteorder", b"little" * (1 << 20))])
    assert bomb.stat().st_size < 1 << 20
    for path, message in ((bomb, "compressed members"), (order, "big-endian")):
        with pytest.raises(UserError, match=message):
            read_torch(path)


def test_a_storage_that_reaches_beyond_the_file(tmp_path):
    fake = FakeTorch()
    path = write_torch(tmp_path / "x.pt", {"a": torch_tensor(fake, FLOATS)}, fake)
    raw = path.read_bytes()
    directory = raw.rindex(b"PK\x01\x02")
    path.write_bytes(raw[: directory + 20] + struct.pack("<2I", 1 << 30, 1 << 30) + raw[directory + 28 :])
    with pytest.raises(UserError, match=r"ends before its storage x/data/0"):
        read_torch(path)


def test_tensors_that_share_their_bytes_over_and_over(tmp_path):
    fake = FakeTorch()
    storage = Storage("FloatStorage", bytes(4 << 16))
    views = {str(i): Call(fake.rebuild, storage, 0, (1 << 16,), (1,), False, OrderedDict()) for i in range(20)}
    with pytest.raises(UserError, match="which share their bytes"):
        read_torch(write_torch(tmp_path / "many.pt", views, fake))
    two = {name: view for name, view in views.items() if name in "12"}
    assert read_torch(write_torch(tmp_path / "tied.pt", two, fake)).keys() == two.keys()
    expanded = {"a": Call(fake.rebuild, Storage("FloatStorage", bytes(4)), 0, (1 << 40,), (0,), False, OrderedDict())}
    with pytest.raises(UserError, match="outside its storage"):
        read_torch(write_torch(tmp_path / "expanded.pt", expanded, fake))


SHAPES = [True, 1.0, "12", None, [(1,)], [True], [-1], [1.5], list(range(65)), [[]], {}]


@pytest.mark.parametrize("shape", SHAPES, ids=repr)
def test_shapes_that_are_no_whole_numbers(tmp_path, shape):
    fake = FakeTorch()
    shape = tuple(shape) if isinstance(shape, list) else shape
    for size, stride in ((shape, (1,)), ((1,), shape)):
        path = write_torch(tmp_path / "x.pt", {"a": Call(fake.rebuild, Storage("FloatStorage", bytes(16)), 0, size, stride, False, OrderedDict())}, fake)
        with pytest.raises(UserError, match="whole numbers"):
            read_torch(path)


def test_a_storage_whose_name_would_be_endless(tmp_path):
    """A list that doubles sixty times is short in memory and endless when it is shown."""
    doubled = b"]q\x000" + b"](h\x00h\x00eq\x000" * 60 + b"h\x00"
    path = archive(tmp_path / "x.pt", b"\x80\x02(X\x07\x00\x00\x00storageX\x03\x00\x00\x00F32" + doubled + b"tQ.")
    with pytest.raises(UserError, match="no storage"):
        read_torch(path)


@pytest.mark.parametrize("arguments", [(), ([["a", 1]],), ({"a": 1},)])
def test_a_dictionary_is_made_empty(tmp_path, arguments):
    fake = FakeTorch()
    path = write_torch(tmp_path / "x.pt", {"a": torch_tensor(fake, FLOATS), "b": Call(OrderedDict, *arguments)}, fake)
    with pytest.raises(UserError, match="hostile pickle" if arguments else "no dictionary of tensors"):
        read_torch(path)


def test_the_keys_of_real_files_are_bounded_too(tmp_path):
    path = archive(tmp_path / "x.pt", b"\x80\x02})" + b"\x85" * 200_000 + b"Ns.")
    with pytest.raises(UserError, match="a key that is neither word nor number"):
        read_torch(path)


def test_pipes_and_folders_are_no_weights(tmp_path):
    os.mkfifo(tmp_path / "x.pt")
    (tmp_path / "y.safetensors").mkdir()
    for name, message in (("x.pt", "is a pipe"), ("y.safetensors", "is a folder"), ("gone.pt", "does not exist")):
        with pytest.raises(UserError, match=message):
            read_file(tmp_path / name)


# manifest.json


def copied(jax_directory, tmp_path, change):
    shutil.copytree(jax_directory, tmp_path / "jax")
    edit(tmp_path / "jax" / "manifest.json", change)
    return tmp_path / "jax"


ELSEWHERE = ["../x.safetensors", "/tmp/x.safetensors", "a/b.safetensors", "..\\x.safetensors", "C:x.safetensors"]
NO_WEIGHTS = [
    "config.json",
    "model.safetensors.index.json",
    ".safetensors",
    "x.bin",
    "..",
    "",
    "x\n.safetensors",
    "x\x00.safetensors",
    "x" * 300 + ".safetensors",
]
NAMES = [*ELSEWHERE, *NO_WEIGHTS]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_weights_are_written_nowhere_but_into_the_output(tmp_path, jax_directory, capsys, name):
    def change(manifest):
        manifest["files"] = {name: {"format": "pt"}}
        manifest["tensors"] = {tensor: {**record, "file": name} for tensor, record in manifest["tensors"].items()}

    source = copied(jax_directory, tmp_path, change)
    assert "expected a name that ends in .safetensors" in refused(capsys, "to-torch", source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["jax"]


def first_record(manifest, **changes):
    name = next(iter(manifest["tensors"]))
    manifest["tensors"][name] = {**manifest["tensors"][name], **changes}


MANIFESTS = {
    "a file that no tensor names": lambda m: m["files"].update({"other.safetensors": {}}),
    "only such a file": lambda m: m.update(files={"other.safetensors": {}}),
    "no files": lambda m: m.update(files={}),
    "no tensors": lambda m: m.update(tensors={}),
    "a tensor without a file": lambda m: first_record(m, file=None),
    "a tensor in a file that is not listed": lambda m: first_record(m, file="other.safetensors"),
    "a dtype": lambda m: first_record(m, dtype="F4"),
    "a dtype that is a list": lambda m: first_record(m, dtype=["F32"]),
    "a shape": lambda m: first_record(m, shape=[True, 1.5]),
    "a shape that is a number": lambda m: first_record(m, shape=3),
    "a checksum": lambda m: first_record(m, crc32="../../x"),
    "a checksum that is a number": lambda m: first_record(m, crc32=12345678),
    "a record that is a list": lambda m: m["tensors"].update(a=[]),
    "files that are a list": lambda m: m.update(files=["model.safetensors"]),
    "metadata": lambda m: m["files"].update({"model.safetensors": {"format": {}}}),
    "metadata that are a word": lambda m: m["files"].update({"model.safetensors": "pt"}),
    "a tied head that is none": lambda m: m.update(tied="head"),
    "a tied head that is a list": lambda m: m.update(tied=[]),
    "a source": lambda m: m.update(source=[]),
    "a source without a path": lambda m: m.update(source={"kind": "checkpoint"}),
    "a key that is missing": lambda m: m.pop("files") and None,
    "something else": lambda m: [m],
}


@pytest.mark.parametrize("change", MANIFESTS.values(), ids=MANIFESTS)
def test_manifests_that_no_conversion_writes(tmp_path, jax_directory, capsys, change):
    source = copied(jax_directory, tmp_path, change)
    for command in (["to-torch", source, tmp_path / "out"], ["inspect", source]):
        assert "manifest.json" in refused(capsys, *command)
    assert [path.name for path in tmp_path.iterdir()] == ["jax"]


# config.json, the index, the tokenizer, adapters


CONFIGS = {
    "a milliard of layers": lambda c: c["text_config"].update(num_hidden_layers=10**9),
    "a milliard of blocks": lambda c: c["vision_config"].update(depth=10**9),
    "as many stages": lambda c: c["sam2_model"].update(stages=[1] * 10**5),
    "a million pixels": lambda c: c["sam2_model"].update(image_size=10**6),
    "a width that no weight has": lambda c: c["text_config"].update(hidden_size=10**12),
    "layers that are a word": lambda c: c["text_config"].update(num_hidden_layers="3"),
    "layers that are true": lambda c: c["text_config"].update(num_hidden_layers=True),
    "a text_config that is a list": lambda c: c.update(text_config=[1]),
    "no vision_config": lambda c: c.update(vision_config=None),
    "another list": lambda c: [c],
}


@pytest.mark.parametrize("change", CONFIGS.values(), ids=CONFIGS)
def test_sizes_that_no_checkpoint_has(tmp_path, arrays, capsys, change):
    source = write_checkpoint(tmp_path / "source", arrays)
    edit(source / "config.json", change)
    for command in (["inspect", source], ["to-jax", source, "--dry-run"], ["to-jax", source, tmp_path / "out"]):
        assert "config.json" in refused(capsys, *command)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"a": NaN}', b"\xff\xfe{}", b"", b"nothing", b'{"a": "' + b"x" * 100])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_json_that_is_broken_or_deep(tmp_path, arrays, capsys, name, content):
    source = write_checkpoint(tmp_path / "source", arrays)
    (source / name).write_bytes(content)
    assert name in refused(capsys, "to-jax", source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_tensor_whose_name_cannot_be_shown(tmp_path, arrays, capsys):
    source = write_checkpoint(tmp_path / "source", arrays)
    raw = (source / "model.safetensors").read_bytes()
    header = json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])
    for name in ("\ud800", "a\x1b[2J", "a\nb"):
        changed = json.dumps({name if key == "seg_head.0.weight" else key: entry for key, entry in header.items()}).encode()
        (source / "model.safetensors").write_bytes(struct.pack("<Q", len(changed)) + changed + raw[8 + struct.unpack("<Q", raw[:8])[0] :])
        assert "which is no name" in refused(capsys, "inspect", source)


def test_a_shard_of_an_index_lies_beside_it(tmp_path, arrays, capsys):
    source = write_checkpoint(tmp_path / "source", arrays, shard_bytes=2_000_000)
    first = min(source.glob("model-*.safetensors"))
    shutil.move(first, tmp_path / "outside.safetensors")
    index = source / "model.safetensors.index.json"
    index.write_text(index.read_text().replace(first.name, "../outside.safetensors"))
    assert "expected a file beside it" in refused(capsys, "inspect", source)


def test_bases_that_cannot_be_paths(tmp_path, arrays, capsys):
    base = write_checkpoint(tmp_path / "base", arrays)
    adapter = write_adapter(tmp_path / "adapter", base, {}, {"seg_head.1.bias": arrays["seg_head.1.bias"]})
    for place in ("x" * 1000, "a\x00b", 7, ["base"], {}):
        edit(adapter / "config.json", lambda config, place=place: config.update(base_model_path=place))
        assert "give its place with --base DIR" in refused(capsys, "to-jax", adapter, tmp_path / "out")


def test_a_fresh_start_from_odd_tokenizers(tmp_path, arrays, capsys):
    qwen, sam2 = write_qwen(tmp_path / "qwen", arrays, TINY, 505), write_sam2(tmp_path / "sam2.pt", arrays)
    (tmp_path / "sizes.json").write_text(json.dumps(vars(TINY.sam2)))
    whole = (qwen / "tokenizer.json").read_text()
    command = ["to-jax", "--qwen", qwen, "--sam2", sam2, "--sam2-size", tmp_path / "sizes.json", tmp_path / "out"]
    for vocabulary in ({}, [], {"a": "b"}, {"a": -1}, {"a": 10**18}, None):
        edit(qwen / "tokenizer.json", lambda raw, vocabulary=vocabulary: raw.update(model={"vocab": vocabulary}, added_tokens=[]))
        assert "token" in refused(capsys, *command)
        (qwen / "tokenizer.json").write_text(whole)
    assert main([str(word) for word in command]) == 0
