"""Torch's files are read without torch, and nothing in them is run."""

import builtins
import os
import zipfile
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest
from tiny_checkpoints import Call, FakeTorch, Storage, torch_tensor, write_torch

from unipixel_jax.convert.torch_pickle import read_torch
from unipixel_jax.errors import UserError


@pytest.fixture
def fake():
    return FakeTorch()


ARRAYS = {
    "float": np.arange(6, dtype=np.float32).reshape(2, 3),
    "half": np.arange(4, dtype=np.float16),
    "brain": np.arange(4).astype(ml_dtypes.bfloat16).reshape(2, 1, 2),
    "long": np.arange(3, dtype=np.int64),
    "truth": np.array([True, False]),
    "scalar": np.array(2.5, np.float32),
    "empty": np.zeros((0, 3), np.float32),
}


@pytest.mark.parametrize("location, npu", [("cpu", False), ("cuda:0", False), ("npu:0", True)])
@pytest.mark.parametrize("key", [None, "model", "state_dict", "module"])
def test_every_dtype_and_device(tmp_path, fake, location, npu, key):
    state = OrderedDict((name, torch_tensor(fake, array, location, npu)) for name, array in ARRAYS.items())
    found = read_torch(write_torch(tmp_path / "x.pt", {key: state} if key else state, fake))
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        loaded = found[name].load()
        assert loaded.dtype == array.dtype and loaded.shape == array.shape and loaded.tobytes() == array.tobytes()


def test_views_of_a_shared_storage(tmp_path, fake):
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    storage = Storage("FloatStorage", base.tobytes())
    views = {
        "whole": ((4, 6), (6, 1), 0, base),
        "transposed": ((6, 4), (1, 6), 0, base.T),
        "cut": ((2, 2), (6, 1), 8, base[1:3, 2:4]),
        "expanded": ((3, 6), (0, 1), 6, np.broadcast_to(base[1], (3, 6))),
    }
    state = {name: Call(fake.rebuild, storage, offset, shape, stride, False, OrderedDict()) for name, (shape, stride, offset, _) in views.items()}
    found = read_torch(write_torch(tmp_path / "x.pt", state, fake))
    for name, (_, _, _, expected) in views.items():
        np.testing.assert_array_equal(found[name].load(), expected)


def test_parameters_and_attributes_of_the_dictionary(tmp_path, fake):
    state = OrderedDict(weight=Call(fake.parameter, torch_tensor(fake, ARRAYS["float"]), True, OrderedDict()))
    state._metadata = OrderedDict(version=1)
    found = read_torch(write_torch(tmp_path / "x.pt", state, fake))
    np.testing.assert_array_equal(found["weight"].load(), ARRAYS["float"])


@pytest.mark.parametrize("layout", [2, 29, -1, False], ids=str)
@pytest.mark.parametrize("enumeration", [False, True])
@pytest.mark.parametrize("location", ["cpu", "npu:0", "npu:7"])
def test_every_way_in_which_torch_npu_saves_a_tensor(tmp_path, fake, layout, enumeration, location):
    """Its versions name the layout on the NPU by a number, by a truth value or by a member of an enumeration, and the values are always in plain order."""
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    storage = Storage("FloatStorage", base.tobytes(), location)
    info = Call(fake.npu_layout, int(layout)) if enumeration else layout
    state = {
        "whole": Call(fake.rebuild_npu, storage, 0, (4, 6), (6, 1), True, OrderedDict(), info),
        "transposed": Call(fake.rebuild_npu, storage, 0, (6, 4), (1, 6), False, OrderedDict(), info),
        "parameter": Call(fake.parameter, Call(fake.rebuild_npu, storage, 6, (2, 3), (6, 1), False, OrderedDict(), info), True, OrderedDict()),
        "plain": Call(fake.rebuild, storage, 0, (24,), (1,), False, OrderedDict()),
    }
    found = read_torch(write_torch(tmp_path / "x.pt", state, fake))
    for name, expected in {"whole": base, "transposed": base.T, "parameter": base[1:3, :3], "plain": base.ravel()}.items():
        np.testing.assert_array_equal(found[name].load(), expected)


def test_a_view_of_which_an_old_torch_npu_saved_a_part_is_refused(tmp_path, fake):
    """It copied the view's values alone, and described them by the place that they had among the others."""
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    for view, offset, stride in [(base[1:], 6, (6, 1)), (base[:, :2], 0, (6, 1)), (base[::2], 0, (12, 1))]:
        storage = Storage("FloatStorage", np.ascontiguousarray(view).tobytes())
        path = write_torch(tmp_path / "x.pt", {"a": Call(fake.rebuild_npu, storage, offset, view.shape, stride, False, OrderedDict(), 2)}, fake)
        with pytest.raises(UserError, match="lies outside its storage of"):
            read_torch(path)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch_npu.utils.storage", "_rebuild_tensor"),
        ("torch_npu.utils.storage", "_reduce_ex"),
        ("torch_npu.utils.serialization", "load"),
        ("torch_npu.multiprocessing.reductions", "rebuild_npu_tensor"),
        ("torch_npu.npu", "set_option"),
        ("torch_npu.npu", "FloatStorage"),
        ("torch_npu", "npu_format_cast"),
        ("torch_npu._C", "_npu_setOption"),
        ("torch._tensor", "_rebuild_from_type_v2"),
        ("torch._utils", "_rebuild_device_tensor_from_numpy"),
    ],
)
def test_other_functions_of_torch_npu_are_refused_by_name(tmp_path, fake, module, name):
    tensor = torch_tensor(fake, ARRAYS["float"], "npu:0", npu=True)
    path = write_torch(tmp_path / "x.pt", {"a": tensor, "b": Call(fake.function(module, name), tensor)}, fake)
    with pytest.raises(UserError, match=rf"asks for {module}\.{name}, which is no part of a tensor: refused, nothing in the file was run"):
        read_torch(path)


@pytest.mark.parametrize("number", ["2", 2.0, None, (2,), {}], ids=repr)
def test_a_layout_that_is_no_number(tmp_path, fake, number):
    storage = Storage("FloatStorage", bytes(16), "npu:0")
    state = {"a": Call(fake.rebuild_npu, storage, 0, (4,), (1,), False, OrderedDict(), Call(fake.npu_layout, number))}
    with pytest.raises(UserError, match="NPU layout is no whole number"):
        read_torch(write_torch(tmp_path / "x.pt", state, fake))


def touch(path):
    return Call(os.system, f"touch {path}")


@pytest.mark.parametrize("place", ["beside", "inside", "as a storage"])
def test_code_in_the_file_is_refused_by_name_and_not_run(tmp_path, fake, place):
    mark = tmp_path / "ran"
    code = touch(mark)
    tensor = torch_tensor(fake, ARRAYS["float"])
    value = {"beside": {"model": {"a": tensor}, "x": code}, "inside": {"a": tensor, "b": code}, "as a storage": {"a": Call(fake.rebuild, code, 0, (1,), (1,))}}
    path = write_torch(tmp_path / "x.pt", value[place], fake)
    with pytest.raises(UserError, match=r"asks for (posix|nt)\.system.*nothing in the file was run"):
        read_torch(path)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["eval", "exec", "getattr", "__import__"])
def test_builtins_are_refused(tmp_path, fake, name):
    path = write_torch(tmp_path / "x.pt", {"a": Call(getattr(builtins, name), "1")}, fake)
    with pytest.raises(UserError, match=rf"__builtin__\.{name}, which is no part of a tensor"):
        read_torch(path)


def test_a_pickle_cannot_change_the_reader(tmp_path, fake):
    """BUILD sets attributes of what is on the stack; on a function of ours it must not."""
    path = tmp_path / "x.pt"
    program = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x08\x00\x00\x00__call__K\x01sb."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", program)
    with pytest.raises(UserError, match="refused, nothing in the file was run"):
        read_torch(path)


def test_a_tensor_outside_its_storage_is_refused(tmp_path, fake):
    storage = Storage("FloatStorage", bytes(16))
    for offset, shape, stride in [(0, (5,), (1,)), (3, (2,), (1,)), (0, (2, 2), (3, 1)), (-1, (1,), (1,)), (3, (2,), (-1,))]:
        path = write_torch(tmp_path / "x.pt", {"a": Call(fake.rebuild, storage, offset, shape, stride, False, OrderedDict())}, fake)
        with pytest.raises(UserError, match="outside its storage" if min(offset, *stride) >= 0 else "whole numbers"):
            read_torch(path)


def test_damaged_and_foreign_files(tmp_path, fake):
    whole = write_torch(tmp_path / "x.pt", {"a": torch_tensor(fake, ARRAYS["float"])}, fake)
    raw = whole.read_bytes()
    packed = write_torch(tmp_path / "packed.pt", {"a": torch_tensor(fake, ARRAYS["float"])}, fake, zipfile.ZIP_DEFLATED)
    lone = write_torch(tmp_path / "lone.pt", torch_tensor(fake, ARRAYS["float"]), fake)
    numbers = write_torch(tmp_path / "numbers.pt", {"model": {"a": 3}}, fake)
    other = tmp_path / "other.zip"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("a.txt", "hello")
    cases = [
        (raw[:-40], "truncated or damaged"),
        (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", "before 1.6"),
        (b"hello", "no torch file"),
        (b"", "no torch file"),
        (packed.read_bytes(), "compressed members"),
        (lone.read_bytes(), "no dictionary of tensors"),
        (numbers.read_bytes(), "no dictionary of tensors"),
        (other.read_bytes(), "no data.pkl"),
    ]
    for content, message in cases:
        whole.write_bytes(content)
        with pytest.raises(UserError, match=message):
            read_torch(whole)


def test_a_missing_storage_is_named(tmp_path, fake):
    whole = write_torch(tmp_path / "x.pt", {"a": torch_tensor(fake, ARRAYS["float"])}, fake)
    cut = tmp_path / "cut.pt"
    with zipfile.ZipFile(whole) as archive, zipfile.ZipFile(cut, "w") as target:
        target.writestr("x/data.pkl", archive.read("x/data.pkl"))
    with pytest.raises(UserError, match="lacks the storage '0'"):
        read_torch(cut)
