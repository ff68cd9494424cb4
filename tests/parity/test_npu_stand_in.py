"""The recorder's `--device npu`, and files that torch saves from an NPU, on a device that stands in for one (npu_stand_in). `make parity`.

The tests that record need a clone of the reference, which the environment variable UNIPIXEL_REFERENCE names.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from unipixel_jax.convert.torch_pickle import read_torch

ROOT = Path(__file__).parents[2]
REFERENCE = os.environ.get("UNIPIXEL_REFERENCE", "")
pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed"),
    pytest.mark.skipif(not (shutil.which("c++") and shutil.which("ninja")), reason="the stand-in is compiled with c++ and ninja"),
]
recording = pytest.mark.skipif(not REFERENCE, reason="UNIPIXEL_REFERENCE names no clone of the reference")


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The environment of processes that have the stand-in, which the first of them compiles. JAX's settings of the tests are not for them."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_", "NPU_STAND_IN"))}
    folder = tmp_path_factory.mktemp("stand_in")
    stand_in = Path(__file__).parent / "npu_stand_in"
    ours = inherited | {"PYTHONPATH": str(stand_in), "TORCH_EXTENSIONS_DIR": str(folder), "NPU_STAND_IN_LOG": str(folder / "log")}
    python(ours, "-c", "import torch_npu")
    return ours


@pytest.fixture
def log(environment):
    """Return the path of the log in which the stand-in device writes what it was told and how many operations it computed; it is new for each test."""
    path = Path(environment["NPU_STAND_IN_LOG"])
    path.unlink()
    return path


def python(environment, *words, status=0):
    """Run Python and return what it printed; fails where the exit status is another."""
    done = subprocess.run([sys.executable, *map(str, words)], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def recorder(environment, *words, status=0):
    return python(environment, "scripts/record_reference.py", "--reference", REFERENCE, *words, status=status)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("x + torch.ones(3)", "same device"),
        ("torch.cat([x, torch.ones(3)])", "same device"),
        ("torch.nn.Linear(3, 2)(x)", "same device"),
        ("x.numpy()", "can't convert npu:0 device type tensor to numpy"),
        ("x.double().norm()", "got float64"),
        ("torch.npu.matmul.allow_tf32 = False", "has no setting allow_tf32"),
        ("torch.npu.set_option({})", "has no attribute 'set_option'"),
    ],
)
def test_the_stand_in_refuses_what_a_device_refuses(environment, statement, message):
    found = python(environment, "-c", f"import torch, torch_npu\nx = torch.ones(3).to('npu')\n{statement}", status=1)
    assert message in found


def test_the_stand_in_computes(environment, log):
    program = """
import torch, torch_npu
torch.manual_seed(0)
x, conv, linear = torch.randn(2, 3, 8, 8), torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(6, 5)
table = torch.nn.Embedding(5, 6)
table.weight = linear.weight
def run(x):
    out = linear(conv(x)) + linear.weight[0, 0]
    loss = torch.nn.functional.scaled_dot_product_attention(out, out, out).square().mean()
    loss.backward()
    return [loss.detach(), *(p.grad for module in (conv, linear) for p in module.parameters())]
before = [value.clone() for value in run(x)]
for module in (conv, linear, table):
    module.zero_grad()
model = torch.nn.ModuleList([conv, linear, table]).to("npu")
assert table.weight is linear.weight and table.weight.is_npu
after = run(x.to("npu"))
for one, other in zip(before, after):
    assert other.is_npu
    torch.testing.assert_close(one, other.cpu())
"""
    python(environment, "-c", program)
    assert int(log.read_text().split()[-1]) > 10


VALUES = "(torch.arange(24, dtype=torch.float32).reshape(4, 6) / 7)"


@pytest.mark.parametrize("by", ["torch_npu", "torch"])
def test_files_that_torch_saved_from_the_device(environment, tmp_path, by):
    """torch_npu pickles tensors by a function of its own; torch alone pickles them with storages of the device."""
    plain = "" if by == "torch_npu" else "from torch_npu.utils.storage import _plain; torch.Tensor.__reduce_ex__ = _plain\n"
    program = f"""
import sys, torch, torch_npu
{plain}x = {VALUES}.to("npu")
linear = torch.nn.Linear(3, 3)
linear.weight.data.copy_(torch.arange(9.).reshape(3, 3))
linear = linear.to("npu")
state = {{"float": x, "half": x.half(), "brain": x.bfloat16(), "long": x.long(), "truth": x > 1, "scalar": x[1, 2], "empty": x[:0], "turned": x.T}}
state |= {{"cut": x[1:3, 2:4], "rows": x[::2], "expanded": x[1].expand(3, 6), "parameter": linear.weight, "again": x, "cpu": x.cpu()}}
torch.save({{"model": state}}, sys.argv[1])
torch.save(linear.state_dict(), sys.argv[2])
"""
    python(environment, "-c", program, tmp_path / "state.pt", tmp_path / "module.pt")
    x = np.arange(24, dtype=np.float32).reshape(4, 6) / np.float32(7)
    expected = {
        "float": x,
        "half": x.astype(np.float16),
        "brain": x.astype(ml_dtypes.bfloat16),
        "long": x.astype(np.int64),
        "truth": x > 1,
        "scalar": x[1, 2],
        "empty": x[:0],
        "turned": x.T,
        "cut": x[1:3, 2:4],
        "rows": x[::2],
        "expanded": np.broadcast_to(x[1], (3, 6)),
        "parameter": np.arange(9, dtype=np.float32).reshape(3, 3),
        "again": x,
        "cpu": x,
    }
    found = read_torch(tmp_path / "state.pt")
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        loaded = found[name].load()
        assert loaded.dtype == array.dtype and loaded.shape == array.shape, name
        np.testing.assert_array_equal(loaded, array, err_msg=name)
    module = read_torch(tmp_path / "module.pt")
    np.testing.assert_array_equal(module["weight"].load(), expected["parameter"])
    with zipfile.ZipFile(tmp_path / "state.pt") as archive:
        pickled = archive.read("state/data.pkl")
    names = (b"ctorch_npu.utils.storage\n_rebuild_npu_tensor\n", b"ctorch_npu.npu._format\nFormat\n")
    assert all(name in pickled for name in names) if by == "torch_npu" else b"npu:0" in pickled and b"torch_npu" not in pickled


@recording
def test_the_recorder_says_that_there_is_no_npu(environment, log, tmp_path):
    found = recorder(environment | {"NPU_STAND_IN_ABSENT": "1"}, "--tiny", "nano_a", "--out", tmp_path / "out", "--device", "npu", status=1)
    assert "error: --device npu: torch" in found and "finds no such device" in found
    assert not list(tmp_path.iterdir()) and "allow_hf32" not in log.read_text()


@recording
@pytest.mark.parametrize("name", ["nano_a", "nano_b"])
def test_recordings_are_replayed_on_the_device(environment, log, name):
    found = recorder(environment, "--replay", f"tests/recordings/{name}", "--device", "npu")
    cases = len(json.loads((ROOT / "tests" / "recordings" / name / "export.json").read_text())["cases"])
    assert f"{cases} of {cases} cases agree" in found
    first, second, computed = log.read_text().splitlines()
    assert (first, second) == ("matmul.allow_hf32 = False", "conv.allow_hf32 = False")
    assert int(computed.split()[-1]) > 50_000


@recording
def test_a_recording_made_on_the_device_passes_here(environment, log, tmp_path):
    folder = tmp_path / "nano_a"
    recorder(environment, "--tiny", "nano_a", "--seed", 3, "--out", folder, "--device", "npu")
    export = json.loads((folder / "export.json").read_text())
    assert (export["device"], len(export["cases"])) == ("npu", 25)
    assert int(log.read_text().split()[-1]) > 100_000
    found = subprocess.run([sys.executable, "-m", "unipixel_jax.cli", "parity", str(folder)], capture_output=True, text=True)
    assert found.returncode == 0 and "25 cases, all passed" in found.stdout, found.stdout[-4000:] + found.stderr
