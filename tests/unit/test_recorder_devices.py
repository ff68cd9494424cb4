"""How the recorder prepares a device (scripts/recording/reference.py), with a torch that has nothing but what is asked of it there."""

import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


class Device:
    """A module such as `torch.npu`, which notes in order whatever is asked of it; its settings are refused where there is no device."""

    def __init__(self, events, available, settings):
        self.events, self.available = events, available
        for name in settings:
            setattr(self, name, Settings(name, self))

    def is_available(self):
        self.events.append("is_available")
        return self.available


class Settings:
    def __init__(self, name, device):
        vars(self).update(name=name, device=device)

    def __setattr__(self, name, value):
        if not self.device.available:
            raise RuntimeError("Initialize: aclrtSetDevice failed")
        self.device.events.append(f"{self.name}.{name} = {value}")


@pytest.fixture
def torch(monkeypatch):
    stub = ModuleType("torch")
    stub.__version__, stub.events = "2.7.1", []
    monkeypatch.setitem(sys.modules, "torch", stub)
    return stub


@pytest.fixture
def reference(monkeypatch, torch):
    monkeypatch.syspath_prepend(SCRIPTS)
    before = set(sys.modules)
    yield importlib.import_module("recording.reference")
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("recording", "unipixel"):
            del sys.modules[name]


def test_an_npu_is_looked_for_before_its_settings_are_changed(monkeypatch, torch, reference):
    monkeypatch.setitem(sys.modules, "torch_npu", ModuleType("torch_npu"))
    torch.npu = Device(torch.events, True, ["matmul", "conv"])
    reference.prepare_device("npu")
    assert torch.events == ["is_available", "matmul.allow_hf32 = False", "conv.allow_hf32 = False"]


def test_a_machine_without_npu(monkeypatch, torch, reference):
    monkeypatch.setitem(sys.modules, "torch_npu", ModuleType("torch_npu"))
    torch.npu = Device(torch.events, False, ["matmul", "conv"])
    with pytest.raises(reference.RecordingError, match=r"--device npu: torch 2\.7\.1 finds no such device; use --device cpu or install the matching torch"):
        reference.prepare_device("npu")
    assert torch.events == ["is_available"]


@pytest.mark.parametrize("fault", ["No module named 'torch_npu'", "libhccl.so: cannot open shared object file: No such file or directory"])
def test_torch_npu_that_is_missing_or_lacks_its_libraries(monkeypatch, reference, fault):
    import_module = importlib.import_module

    def refuse(name):
        if name == "torch_npu":
            raise ImportError(fault)
        return import_module(name)

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(reference.RecordingError, match=f"--device npu needs the package torch_npu: {fault}"):
        reference.prepare_device("npu")


def test_other_devices_ask_nothing_of_an_npu(torch, reference):
    reference.prepare_device("cpu")
    assert torch.events == []
    torch.cuda = Device(torch.events, True, [])
    torch.backends = SimpleNamespace(cuda=Device(torch.events, True, ["matmul"]), cudnn=Settings("cudnn", torch.cuda))
    reference.prepare_device("cuda")
    assert torch.events == ["is_available", "matmul.allow_tf32 = False", "cudnn.allow_tf32 = False"]


def test_the_package_that_is_missing_is_named(tmp_path, monkeypatch, reference):
    """transformers hides it behind the name of the class that it could not import: on an NPU it imports einops, which nothing else needs."""
    model = tmp_path / "unipixel" / "model"
    model.mkdir(parents=True)
    for folder in (model.parent, model):
        (folder / "__init__.py").touch()
    hidden = "raise ModuleNotFoundError(\"No module named 'einops'\")"
    shown = "raise ModuleNotFoundError('AutoProcessor') from error"
    (model / "qwen2_5_vl.py").write_text(f"try:\n    {hidden}\nexcept ImportError as error:\n    {shown}\n")
    monkeypatch.setattr(reference.shims, "install", lambda: None)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    with pytest.raises(reference.RecordingError, match=r"the reference does not import: No module named 'einops'; see docs/recording\.md"):
        reference.use_clone(tmp_path)
