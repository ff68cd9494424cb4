"""Programs on an Ascend NPU, against a stand-in for pyACL: no NPU was there."""

import sys

import numpy as np
import pytest

from tests.export.acl_stand_in import Acl
from unipixel_jax.errors import UserError
from unipixel_jax.runtime.ascend import AclProgram, script
from unipixel_jax.runtime.manifest import Array, PartFile

INPUTS = (Array("x", (2, 3), "float32"), Array("unused", (1,), "float32"), Array("n", (), "int32"))
PART = PartFile("double.onnx", {}, INPUTS, (Array("doubled", (2, 3), "float32"), Array("next", (), "int32")))


def double(path):
    """A program that does not depend on one of the part's inputs."""
    return [("x", "float32", (2, 3)), ("n", "int32", ())], [("y", "float32", (2, 3)), ("m", "int32", ())], lambda given: (2 * given["x"], given["n"] + 1)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "double.om").write_bytes(b"compiled")
    return tmp_path


def test_arrays_go_to_the_device_and_back(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "acl", Acl(double))
    program, again = AclProgram(folder, PART), AclProgram(folder, PART)
    x = np.arange(6, dtype=np.float32).reshape(3, 2).T
    for _ in range(2):
        found = program.run({"x": x, "unused": np.zeros(1, np.float32), "n": np.asarray(4, np.int32)})
        np.testing.assert_array_equal(found["doubled"], 2 * x)
        assert found["next"] == 5 and found["next"].dtype == np.int32
    assert again.run({"x": -x, "n": np.asarray(0, np.int32)})["doubled"][1, 2] == -10


@pytest.mark.parametrize("call", ["set_device", "malloc", "memcpy", "load_from_file", "execute"])
def test_a_call_that_fails_is_named(folder, monkeypatch, call):
    monkeypatch.setitem(sys.modules, "acl", Acl(double, call))
    with pytest.raises(UserError, match=rf"acl\.\w+\.{call}.* failed with 507033: see Huawei's list"):
        AclProgram(folder, PART).run({"x": np.zeros((2, 3), np.float32), "n": np.asarray(0, np.int32)})


def test_what_is_missing_or_of_another_export_is_named(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "acl", None)
    with pytest.raises(UserError, match="needs pyACL, the module acl of CANN: install CANN's toolkit"):
        AclProgram(folder, PART)
    monkeypatch.setitem(sys.modules, "acl", Acl(double))
    with pytest.raises(UserError, match=r"other\.om does not exist: compile the export .* by: sh .*atc\.sh SOC_VERSION"):
        AclProgram(folder, PartFile("other.onnx", {}, PART.inputs, PART.outputs))
    for wrong in (PartFile("double.onnx", {}, INPUTS[:2], PART.outputs), PartFile("double.onnx", {}, INPUTS, PART.outputs[:1])):
        with pytest.raises(UserError, match=r"double\.om has other inputs or outputs than double\.onnx: compile this export by atc\.sh"):
            AclProgram(folder, wrong)


def test_the_script_compiles_every_part():
    lines = script(["encode", "track"]).splitlines()
    assert lines[0] == "#!/bin/sh" and [line.split()[2:4] for line in lines if line.startswith("atc ")] == [
        ["--model=encode.onnx", "--output=encode"],
        ["--model=track.onnx", "--output=track"],
    ]
