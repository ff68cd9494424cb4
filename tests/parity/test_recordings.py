"""The recordings that ship with the tests are replayed: we compute what the torch reference computed. docs/testing.md says how they were made."""

import contextlib
import dataclasses
import functools
import json
import shutil
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from unipixel_jax.convert.safetensors_io import read_safetensors, write_safetensors
from unipixel_jax.convert.tables import all_rules
from unipixel_jax.convert.tensors import CODES, Tensor
from unipixel_jax.errors import UserError
from unipixel_jax.parity import run, sam2, training
from unipixel_jax.parity.gradients import with_adapters
from unipixel_jax.parity.recording import Case, open_recording
from unipixel_jax.parity.replay import KINDS
from unipixel_jax.parity.run import replay, to_json
from unipixel_jax.parity.training import adapters_of

RECORDINGS = Path(__file__).parents[1] / "recordings"
NAMES = ("nano_a", "nano_a_bf16", "nano_b", "sam2_nano")
CASES = [(name, case.name) for name in NAMES for case in open_recording(RECORDINGS / name).cases]
SIZE_LIMIT = 14_000_000
"""In bytes: 11 MB of UniPixel, 2.5 MB of SAM 2.1 alone, and what the processing and the data sources are compared with."""


@functools.cache
def converted_once(checkpoint, convert=run._converted):
    """Return the model that a replay makes of a checkpoint or an adapter; each is converted once for all tests."""
    with convert(checkpoint) as loaded:
        return loaded


@pytest.fixture(autouse=True)
def shared_conversions(monkeypatch):
    """Each checkpoint is converted once, though dozens of excerpts link to it; a replay does not change the model."""
    monkeypatch.setattr(run, "_converted", lambda checkpoint: contextlib.nullcontext(converted_once(checkpoint.resolve())))


@functools.cache
def results(recording):
    """The result of each case by its name; a recording is converted once."""
    return {result.name: result for result in replay(open_recording(RECORDINGS / recording))}


@pytest.mark.parametrize(("recording", "case"), CASES, ids=["-".join(pair) for pair in CASES])
def test_case_passes(recording, case):
    result = results(recording)[case]
    failed = [f"{check.name}: {check.relative_error:.2e} > {check.allowed:.1e}" for check in result.checks if not check.passed]
    assert result.checks and not failed


def test_every_kind_is_recorded_and_the_recordings_are_small():
    kinds = {case.kind for name in NAMES for case in open_recording(RECORDINGS / name).cases}
    assert kinds == set(KINDS) | set(sam2.KINDS)
    assert sum(file.stat().st_size for file in RECORDINGS.rglob("*") if file.is_file()) < SIZE_LIMIT


def excerpt(target, name, cases, change=lambda case, tensors: None, dtype=None):
    """A recording of some cases of another, its tensors passed through ``change``."""
    source = RECORDINGS / name
    description = json.loads((source / "export.json").read_text())
    description["cases"] = [case for case in description["cases"] if case["name"] in cases]
    description["dtype"] = dtype or description["dtype"]
    (target / "cases").mkdir(parents=True)
    (target / "export.json").write_text(json.dumps(description))
    for folder in ("checkpoint", "adapter", "media"):
        (target / folder).symlink_to(source / folder)
    for case in cases:
        tensors = {key: tensor.load().copy() for key, tensor in read_safetensors(source / "cases" / f"{case}.safetensors").tensors.items()}
        change(case, tensors)
        as_tensors = {key: Tensor.computed(CODES[a.dtype], a.shape, lambda a=a: a) for key, a in tensors.items()}
        write_safetensors(target / "cases" / f"{case}.safetensors", as_tensors, {})
        for names in (source / "cases").glob(f"{case}.*.json"):
            shutil.copy(names, target / "cases")
    return open_recording(target)


def one_value(key, index, add):
    """Changes one value of one output."""

    def change(case, tensors):
        array = tensors[f"outputs.{key}"]
        array[index] = ~array[index] if array.dtype == bool else array[index] + add

    return change


CORRUPTED_SAM2 = {
    "sam2_prompts": ("5.iou", (0, 0), 1e-3),
    "sam2_session": ("5.scores", (17, 0), 6e-5),
    "sam2_session_corrections": ("4.low_res", (3, 1, 2, 5), 0.5),
}


@pytest.mark.parametrize("case", CORRUPTED_SAM2)
def test_a_single_wrong_value_of_sam2_fails(tmp_path, case):
    key, index, add = CORRUPTED_SAM2[case]
    (result,) = replay(excerpt(tmp_path / "recording", "sam2_nano", [case], one_value(key, index, add)))
    assert [check.name for check in result.checks if not check.passed] == [key]


def test_all_cases_of_training_of_a_recording_share_a_program():
    recording = open_recording(RECORDINGS / "nano_a")
    loaded = converted_once(recording.root / "checkpoint")
    (case,) = (case for case in recording.cases if case.name == "train_steps_lora")
    without = with_adapters(loaded.model, adapters_of(recording.cases), {})
    own, rules = training._with_own_adapters(loaded.model, all_rules(loaded.config), case)
    assert jax.tree.structure(without) == jax.tree.structure(own)
    described = [[(a.shape, a.dtype, a.committed) for a in jax.tree.leaves(model)] for model in (without, own)]
    assert described[0] == described[1]
    added = {rule.jax for rule in rules} - {rule.jax for rule in all_rules(loaded.config)}
    arrays = [dict(nnx.to_flat_state(nnx.state(model))) for model in (without, own)]
    assert added and all(not np.any(arrays[0][path][...]) and np.all(np.any(arrays[1][path][...], axis=(1, 2))) for path in added)


def test_a_recording_without_adapters_adds_none():
    assert adapters_of(open_recording(RECORDINGS / "nano_b").cases) is None


CORRUPTED = {
    "text": ("logits", (0, 0, 3), 0.01),
    "sam2_image": ("fpn.0", (0, 1, 2, 3), 0.05),
    "rope_index": ("position_ids", (0, 0, 5), 1),
    "refer": ("seg_tokens", (0, 9, 0), np.nan),
    "smart_resize": ("hw", (7, 1), 28),
    "chatml_labels": ("labels", -1, 1),
}


@pytest.mark.parametrize("case", CORRUPTED)
def test_a_single_wrong_value_fails(tmp_path, case):
    key, index, add = CORRUPTED[case]
    report = to_json(list(replay(excerpt(tmp_path / "recording", "nano_a", [case], one_value(key, index, add)))))
    assert report["passed"] is False and report["cases"][0]["passed"] is False
    wrong = [tensor["name"] for tensor in report["cases"][0]["tensors"] if not tensor["passed"]]
    assert [name.split(" ")[0] for name in wrong] == [key]


def test_the_report_has_the_promised_form(tmp_path):
    report = to_json(list(replay(excerpt(tmp_path / "recording", "nano_a", ["smart_resize", "chatml_labels"]))))
    assert report["passed"] is True
    assert [(case["name"], case["kind"], case["passed"]) for case in report["cases"]] == [
        ("smart_resize", "smart_resize", True),
        ("chatml_labels", "chatml_labels", True),
    ]
    for case in report["cases"]:
        for tensor in case["tensors"]:
            assert {"name", "relative_error", "max_error", "passed"} <= tensor.keys()
    assert json.loads(json.dumps(report)) == report


def test_an_unknown_kind_fails(tmp_path):
    recording = excerpt(tmp_path / "recording", "nano_a", ["smart_resize"])
    unknown = dataclasses.replace(recording, cases=(dataclasses.replace(recording.cases[0], kind="audio"),))
    assert to_json(list(replay(unknown)))["passed"] is False


def test_nothing_compared_is_not_a_pass():
    assert to_json([])["passed"] is False


def halved(case, tensors):
    """Outputs as a bfloat16 run would have kept them."""
    for key, array in tensors.items():
        if array.dtype == np.float32:
            tensors[key] = array.astype(ml_dtypes.bfloat16)


def test_bfloat16_recordings_are_judged_by_their_own_precision(tmp_path):
    cases = ["text", "sam2_image", "sam2_video", "generate"]
    rounded = list(replay(excerpt(tmp_path / "bfloat16", "nano_a", cases, halved, "bfloat16")))
    assert to_json(rounded)["passed"] is True
    assert all(check.allowed >= 0.01 for result in rounded for check in result.checks if result.kind in ("text", "sam2_image"))
    strict = list(replay(excerpt(tmp_path / "float32", "nano_a", ["text", "sam2_image"], halved)))
    assert not any(result.passed for result in strict)


def described(root, **changes):
    """The recording with other entries in its description."""
    raw = json.loads((root / "export.json").read_text())
    (root / "export.json").write_text(json.dumps(raw | changes))


BROKEN = {
    "no export.json": (lambda root: (root / "export.json").unlink(), "no export.json"),
    "not JSON": (lambda root: (root / "export.json").write_text("{"), "cannot be read"),
    "another format": (lambda root: (root / "export.json").write_text('{"format": 2, "dtype": "float32", "cases": []}'), "format 2, this version reads 1"),
    "no cases": (lambda root: (root / "export.json").write_text('{"format": 1, "dtype": "float32", "cases": []}'), "no cases"),
    "nesting without end": (lambda root: (root / "export.json").write_text("[" * 100_000), "nested too deeply"),
    "a list": (lambda root: (root / "export.json").write_text("[]"), "holds a list"),
    "another dtype": (lambda root: described(root, dtype="object"), "needs a dtype"),
    "cases that are no list": (lambda root: described(root, cases={"a": 1}), "a list of cases"),
    "a case that is no object": (lambda root: described(root, cases=["text"]), "a case is text"),
    "a name with a path": (lambda root: described(root, cases=[{"name": "../../../etc/passwd", "kind": "text"}]), "expected a name of letters"),
    "an absolute name": (lambda root: described(root, cases=[{"name": "/etc/passwd", "kind": "text"}]), "expected a name of letters"),
    "a name that is a number": (lambda root: described(root, cases=[{"name": 1, "kind": "text"}]), "expected a name of letters"),
    "a kind that is a list": (lambda root: described(root, cases=[{"name": "text", "kind": []}]), "and a kind"),
    "a case's file is missing": (lambda root: (root / "cases" / "text.safetensors").unlink(), "text.safetensors"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_recording_gets_one_clear_line(tmp_path, fault):
    breaks, message = BROKEN[fault]
    root = tmp_path / "recording"
    shutil.copytree(RECORDINGS / "nano_b" / "cases", root / "cases")
    shutil.copy(RECORDINGS / "nano_b" / "export.json", root)
    breaks(root)
    with pytest.raises(UserError, match=message) as caught:
        open_recording(root)
    assert "\n" not in str(caught.value)


def test_a_missing_tensor_gets_one_clear_line(tmp_path):
    recording = excerpt(tmp_path / "recording", "nano_a", ["text"], lambda case, tensors: tensors.pop("inputs.input_ids"))
    with pytest.raises(UserError, match=r"text\.safetensors lacks inputs\.input_ids"):
        list(replay(recording))


def rewritten(key, array):
    """Puts another array in the place of an input."""
    return lambda case, tensors: tensors.update({f"inputs.{key}": np.asarray(array)})


HOSTILE_ARRAYS = {
    "a grid without end": ("rope_index", rewritten("image_grid_thw", [[1 << 40, 1 << 20, 1 << 20]]), "image_grid_thw is no grid of patches"),
    "a large grid": ("rope_index", rewritten("video_grid_thw", [[1000, 1000, 1000]]), "more than 1,048,576 patches"),
    "a grid below zero": ("vision_window_edges", rewritten("grid_thw", [[1, -4, 4]]), "grid_thw is no grid of patches"),
    "a grid of fractions": ("vision_window_edges", rewritten("grid_thw", [[1.0, 4.0, 4.0]]), "grid_thw is no grid of patches"),
    "a grid with too few numbers": ("vision_window_edges", rewritten("grid_thw", [1, 4]), "grid_thw is no grid of patches"),
    "a frame without end": ("sam2_video", rewritten("frame_size", [1 << 20, 1 << 20]), "frame_size is no height and width"),
    "a frame of three numbers": ("sam2_video", rewritten("frame_size", [40, 75, 1]), "frame_size is no height and width"),
    "ids of another shape": ("text", rewritten("input_ids", [1, 2, 3]), "cannot be replayed"),
}


@pytest.mark.parametrize("fault", HOSTILE_ARRAYS)
def test_arrays_that_fit_nothing_get_one_clear_line(tmp_path, fault):
    case, change, message = HOSTILE_ARRAYS[fault]
    with pytest.raises(UserError, match=message) as caught:
        list(replay(excerpt(tmp_path / "recording", "nano_a", [case], change)))
    assert "\n" not in str(caught.value)


HOSTILE_SESSIONS = {
    "squares of another size": ({}, rewritten("squares", np.zeros((2, 8, 8, 3), np.uint8)), r"squares is uint8\[2, 8, 8, 3\], expected"),
    "no actions": ({"actions": []}, lambda case, tensors: None, "actions is no list of 1 to 64 objects"),
    "actions without end": ({"actions": [{"do": "propagate"}] * 65}, lambda case, tensors: None, "actions is no list of 1 to 64 objects"),
    "an object that is not there": ({"actions": [{"do": "remove", "object": 3}]}, lambda case, tensors: None, "cannot be replayed"),
    "tracking of nothing": ({"actions": [{"do": "propagate"}]}, lambda case, tensors: None, "cannot be replayed"),
    "a frame beyond the clip": (
        {"actions": [{"do": "add", "frame": 10**9, "object": 1, "points": [[1, 1]], "labels": [1]}]}, lambda case, tensors: None, "cannot be replayed",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", HOSTILE_SESSIONS)
def test_sessions_that_fit_nothing_get_one_clear_line(tmp_path, fault):
    options, change, message = HOSTILE_SESSIONS[fault]
    recording = excerpt(tmp_path / "recording", "sam2_nano", ["sam2_session_non_overlap"], change)
    described(recording.root, cases=[{**recording.description["cases"][0], **options}])
    with pytest.raises(UserError, match=message) as caught:
        list(replay(open_recording(recording.root)))
    assert "\n" not in str(caught.value)


def test_a_clip_of_too_many_frames_is_not_tracked(tmp_path, monkeypatch):
    recording = excerpt(tmp_path / "recording", "nano_b", ["e2e_every_frame"])
    monkeypatch.setattr("unipixel_jax.parity.replay.MAX_FRAMES", 39)
    with pytest.raises(UserError, match="e2e_every_frame: media/long_clip has 40 frames, expected at most 39: record it again"):
        list(replay(recording))


HOSTILE_OPTIONS = {
    "an answer without end": ("generate", {"max_new_tokens": 10**9}, "max_new_tokens is 1000000000, expected a whole number from 1 to 4096"),
    "an answer of no number": ("generate", {"max_new_tokens": "8"}, "max_new_tokens is 8, expected"),
    "steps without end": ("train_steps_seg", {"steps": 10**12}, "steps is 1000000000000, expected a whole number from 1 to 1000"),
    "large adapters": ("train_steps_lora", {"lora": {"rank": 10**9, "alpha": 8}}, "LoRA of rank 1000000000"),
    "frames without end": ("e2e_image", {"sample_frames": 10**9}, "sample_frames is 1000000000"),
    "media elsewhere": ("e2e_image", {"media": "../../../../etc/passwd"}, "expected a path inside the recording"),
    "absolute media": ("e2e_image", {"media": "/etc/passwd"}, "expected a path inside the recording"),
    "an adapter elsewhere": ("lora", {"adapter": "../../nano_a/adapter"}, "expected a path inside the recording"),
    "an adapter that is a number": ("lora", {"adapter": 7}, "expected a path inside the recording"),
    "messages that are none": ("chatml_labels", {"messages": 7}, "the chat template fails"),
    "an optimizer's unknown setting": ("train_steps_seg", {"optimizer": {"speed": 1}}, "cannot be replayed .*speed"),
}


@pytest.mark.parametrize("fault", HOSTILE_OPTIONS)
def test_descriptions_that_fit_nothing_get_one_clear_line(tmp_path, fault):
    case, changes, message = HOSTILE_OPTIONS[fault]
    recording = excerpt(tmp_path / "recording", "nano_a", [case])
    described(recording.root, cases=[{**recording.description["cases"][0], **changes}])
    with pytest.raises(UserError, match=message) as caught:
        list(replay(open_recording(recording.root)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["[" * 100_000, "{", '[["model.norm.weight", NaN, 0]]'])
def test_damaged_files_beside_a_case_get_one_clear_line(tmp_path, content):
    (tmp_path / "a.trained.json").write_text(content)
    with pytest.raises(UserError, match=r"a\.trained\.json is .*record it again"):
        Case("a", "train_steps", {}, tmp_path / "a.safetensors").beside("trained")
