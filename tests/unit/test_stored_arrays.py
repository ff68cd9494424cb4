"""Arrays on disk, in a folder and packed: the same numbers, and one clear line for what is damaged or hostile."""

import json
import zipfile

import ml_dtypes
import numpy as np
import pytest

from unipixel_jax.core.stored import has_arrays, pack, packed, read
from unipixel_jax.core.trees import join
from unipixel_jax.errors import UserError

ARRAYS = {
    ("tower", 0, "w"): np.arange(24, dtype=np.float32).reshape(4, 3, 2),
    ("bias",): np.arange(5).astype(ml_dtypes.bfloat16),
    ("scalar",): np.asarray(3.0),
}


@pytest.fixture
def params(tmp_path):
    folder = tmp_path / "model" / "params"
    for key, array in ARRAYS.items():
        place = folder / join(key)
        place.mkdir(parents=True)
        chunk = [1, *array.shape[1:]] if array.ndim == 3 else list(array.shape)
        name = "bfloat16" if array.dtype == ml_dtypes.bfloat16 else array.dtype.str
        header = {"zarr_format": 2, "shape": array.shape, "chunks": chunk, "dtype": name, "order": "C", "compressor": None, "filters": None}
        (place / ".zarray").write_text(json.dumps(header))
        for number, piece in enumerate(array if array.ndim == 3 else [array]):
            (place / ".".join([str(number), *["0"] * (array.ndim - 1)])).write_bytes(piece.tobytes())
    return folder


def change(params, name, **fields):
    header = params / name / ".zarray"
    header.write_text(json.dumps(json.loads(header.read_text()) | fields))


def test_packed_arrays_are_the_same(params, tmp_path):
    (tmp_path / "packed").mkdir()
    target = tmp_path / "packed" / "params"
    pack(params, packed(target))
    assert has_arrays(params) and has_arrays(target) and not has_arrays(tmp_path / "params")
    for found in (read(params), read(target)):
        assert found.keys() == ARRAYS.keys()
        for key, array in ARRAYS.items():
            assert b"".join(bytes(block) for block in found[key].blocks()) == array.tobytes()
            whole = (slice(None),) * array.ndim
            np.testing.assert_array_equal(found[key].load(whole, array.dtype), array)
            np.testing.assert_array_equal(found[key].load(whole, np.dtype(np.float16)), array.astype(np.float16))
        assert b"".join(bytes(block) for block in found["tower", 0, "w"].blocks(2)) == ARRAYS["tower", 0, "w"][2].tobytes()
        part = found["tower", 0, "w"].load((slice(1, 3), slice(1, 2), slice(None)), np.dtype(np.float32))
        np.testing.assert_array_equal(part, ARRAYS["tower", 0, "w"][1:3, 1:2])


def test_packing_twice_gives_the_same_bytes(params, tmp_path):
    pack(params, tmp_path / "a.zip")
    pack(params, tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dtype": "|O"}, r"has the dtype \|O, expected one of bfloat16, <f2"),
        ({"dtype": "<i8"}, "has the dtype <i8"),
        ({"dtype": [["a", "|O"]]}, "has the dtype"),
        ({"shape": [-1], "chunks": [-1]}, "expected lists of sizes"),
        ({"shape": [10**40], "chunks": [10**40]}, "expected lists of sizes"),
        ({"shape": [True], "chunks": [True]}, "expected lists of sizes"),
        ({"shape": [10**12], "chunks": [10**12]}, "chunk 0 of 10 bytes, expected 2000000000000"),
        ({"shape": [2**40], "chunks": [1]}, "chunk 0 of 10 bytes, expected 2"),
        ({"compressor": {"id": "zlib"}}, "compressed or in another order"),
        ({"filters": [{"id": "pickle"}]}, "compressed or in another order"),
        ({"shape": None}, "expected lists of sizes"),
    ],
)
@pytest.mark.parametrize("form", ["folder", "zip"])
def test_hostile_headers_are_refused(params, tmp_path, fields, message, form):
    change(params, "bias", **fields)
    if form == "zip":
        pack(params, packed(tmp_path / "params"))
    with pytest.raises(UserError, match=message):
        read(params if form == "folder" else tmp_path / "params")


@pytest.mark.parametrize("text", ["", "[]", "{}", "[" * 100_000, '{"shape": NaN}', "\xff\xfe"])
def test_headers_that_are_no_headers(params, text):
    (params / "bias" / ".zarray").write_text(text, encoding="latin1")
    with pytest.raises(UserError, match=r"bias/\.zarray"):
        read(params)


def test_damaged_zip_files_are_refused(params, tmp_path):
    file = packed(tmp_path / "params")
    pack(params, file)
    content = file.read_bytes()
    header = tmp_path / "compressed.zip"
    with zipfile.ZipFile(header, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(p for p in params.rglob("*") if p.is_file()):
            archive.write(path, path.relative_to(params).as_posix())
    for damaged in (content[:-100], content[: len(content) // 2], b"", b"PK", content[-200:], header.read_bytes()):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"params\.zip"):
            read(tmp_path / "params")


def test_every_flipped_byte_of_a_zip_file_is_refused_or_harmless(params, tmp_path):
    file = packed(tmp_path / "params")
    pack(params, file)
    content = bytearray(file.read_bytes())
    refused = 0
    for place in range(0, len(content), 3):
        changed = bytearray(content)
        changed[place] ^= 0xFF
        file.write_bytes(changed)
        try:
            for array in read(tmp_path / "params").values():
                assert sum(len(block) for block in array.blocks()) == array.dtype.itemsize * int(np.prod(array.shape))
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 100
