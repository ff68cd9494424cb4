"""Recordings replayed through the programs of an export. Those of StableHLO are tested wherever the tests run, those of ONNX by `make onnx`."""

import re
import shutil
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tests.export.acl_stand_in import Acl
from unipixel_jax.cli import main
from unipixel_jax.convert.safetensors_io import read_safetensors, write_safetensors
from unipixel_jax.convert.tensors import CODES, Tensor
from unipixel_jax.parity.exported import KINDS
from unipixel_jax.parity.recording import open_recording
from unipixel_jax.runtime.ascend import SCRIPT
from unipixel_jax.runtime.manifest import ExportManifest

RECORDINGS = Path(__file__).parents[1] / "recordings"
ROW = re.compile(r"│ (\S+)\s+│ (\S.*?)\s+│ (\S+)\s+│ \S+\s+│ \S+\s+│ (yes|NO)")


def rows(text):
    """Return the relative error of each tensor in a report, and whether it passed."""
    return {(case, tensor): (float(error), verdict == "yes") for case, tensor, error, verdict in ROW.findall(text)}


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """A recording with a case of each kind that is not e2e, whose prompts make its programs large."""
    root = tmp_path_factory.mktemp("recording") / "nano_a"
    shutil.copytree(RECORDINGS / "nano_a", root)
    description = (root / "export.json").read_text()
    (root / "export.json").write_text(description.replace('"kind": "e2e"', '"kind": "skipped"'))
    return root


@pytest.fixture(scope="module")
def export(recording, tmp_path_factory):
    """The folder of its export."""
    return tmp_path_factory.mktemp("export") / "programs"


def test_programs_compute_what_was_recorded(recording, export, capsys):
    assert main(["parity", str(recording), "--runtime", "stablehlo", "--export", str(export)]) == 0
    printed = capsys.readouterr().out
    found = rows(printed)
    assert {case for case, _ in found} == {"vision_window_edges", "text", "refer", "memory", "sam2_image", "sam2_video", "generate"}
    assert found["text", "logits"][0] < 2e-6 and found["generate", "tokens"] == found["generate", "masks"] == (0.0, True)
    assert "8 other cases are of things that no program of an export computes\n7 cases, all passed" in printed
    assert set(ExportManifest.read(export).parts) == {part for _, parts in KINDS.values() for part in parts}


def with_outputs(recording, root, change, dtype="float32"):
    """A copy of a recording whose outputs were changed."""
    shutil.copytree(recording, root)
    (root / "export.json").write_text((root / "export.json").read_text().replace('"dtype": "float32"', f'"dtype": "{dtype}"'))
    for case in open_recording(root).cases:
        if case.kind in KINDS:
            tensors = {name: tensor.load().copy() for name, tensor in read_safetensors(case.path).tensors.items()}
            changed = {name: change(case.name, name, array) for name, array in tensors.items()}
            write_safetensors(case.path, {name: Tensor.computed(CODES[a.dtype], a.shape, lambda a=a: a) for name, a in changed.items()}, {})
    return root


def test_an_export_is_used_again_and_a_wrong_value_found(recording, export, tmp_path, capsys):
    lengths = open_recording(recording).cases[1].input("attention_mask").astype(bool).sum(axis=1)
    wrong = {("text", "logits"): (1, lengths[1] - 1), ("sam2_video", "obj_ptr"): (-1,), ("refer", "logits"): (0, -1, 3)}

    def change(case, name, array):
        place = wrong.get((case, name.removeprefix("outputs.")))
        if place is not None and name.startswith("outputs."):
            array[place] += 1
        return array

    before = {path: path.stat().st_mtime_ns for path in export.iterdir()}
    assert main(["parity", str(with_outputs(recording, tmp_path / "changed", change)), "--runtime", "stablehlo", "--export", str(export)]) == 1
    failed = {key for key, (_, passed) in rows(capsys.readouterr().out).items() if not passed}
    assert failed == {("text", "logits"), ("sam2_video", "obj_ptr"), ("refer", "logits[-1]")}
    assert before == {path: path.stat().st_mtime_ns for path in export.iterdir()}


def test_a_recording_in_bfloat16_is_judged_by_its_precision(recording, export, tmp_path, capsys):
    def rounded(case, name, array):
        return array.astype(ml_dtypes.bfloat16) if array.dtype == np.float32 else array

    root = with_outputs(recording, tmp_path / "rounded", rounded, "bfloat16")
    assert main(["parity", str(root), "--runtime", "stablehlo", "--export", str(export)]) == 0
    found = rows(capsys.readouterr().out)
    assert 1e-4 < found["text", "logits"][0] < 0.018 and ("generate", "tokens") not in found
    assert found["generate", "tokens by scores"] == (0.0, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--export", "programs"], "--export is the folder of the programs for --runtime"),
        (["--runtime", "onnx", "--against", "."], "give one of them"),
        (["--runtime", "acl"], "--runtime acl runs what ATC compiled: make an export by --runtime onnx --export FOLDER"),
    ],
)
def test_options_that_do_not_go_together(recording, capsys, options, message):
    assert main(["parity", str(recording), *options]) == 1
    assert message in capsys.readouterr().err


def test_an_export_of_another_model_or_without_a_part_is_refused(recording, export, tmp_path, capsys):
    assert main(["parity", str(RECORDINGS / "nano_b"), "--runtime", "stablehlo", "--export", str(export)]) == 1
    assert "is an export of another model than" in capsys.readouterr().err
    small = tmp_path / "small"
    assert main(["export", str(recording / "checkpoint"), str(small), "--format", "stablehlo", "--parts", "prompt", "--platform", "cpu"]) == 0
    assert main(["parity", str(recording), "--runtime", "stablehlo", "--export", str(small)]) == 1
    assert "the export has no vision, prefill, step, encode, first_frame, track, which this recording needs" in capsys.readouterr().err
    assert main(["parity", str(RECORDINGS / "sam2_nano"), "--runtime", "stablehlo"]) == 1
    assert "has no case that programs of an export take part in" in capsys.readouterr().err


@pytest.mark.onnx
@pytest.mark.parametrize("name", ["nano_a", "nano_b"])
def test_onnx_programs_compute_what_was_recorded(name, tmp_path, capsys, monkeypatch):
    """Recordings are replayed through onnxruntime, and nano_b again through compiled programs that are called by the functions of pyACL."""
    import onnxruntime

    folder = tmp_path / "programs"
    assert main(["parity", str(RECORDINGS / name), "--runtime", "onnx", "--export", str(folder)]) == 0
    found = rows(capsys.readouterr().out)
    assert {case for case, _ in found} >= {"text", "sam2_video"} and all(passed for _, passed in found.values())
    assert (folder / SCRIPT).read_text().count("\natc --framework=5 ") == len(list(folder.glob("*.onnx")))
    if name == "nano_b":
        for path in folder.glob("*.onnx"):
            path.with_suffix(".om").write_bytes(b"")
        monkeypatch.setitem(sys.modules, "acl", Acl(lambda path: compiled(onnxruntime.InferenceSession(path.removesuffix(".om") + ".onnx"))))
        assert main(["parity", str(RECORDINGS / name), "--runtime", "acl", "--export", str(folder)]) == 0
        again = rows(capsys.readouterr().out)
        assert again.keys() == found.keys() and all(passed for _, passed in again.values())


def compiled(session):
    """A session of onnxruntime as a program of the stand-in."""
    kinds = {"tensor(float)": np.float32, "tensor(int32)": np.int32, "tensor(bool)": np.bool_}
    taken, made = ([(own.name, kinds[own.type], tuple(own.shape)) for own in side] for side in (session.get_inputs(), session.get_outputs()))
    return taken, made, lambda given: session.run(None, given)
