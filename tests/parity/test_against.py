"""Two recordings are compared with each other, without our model, and what the blocks of our model compute is given in either dtype."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from test_recordings import RECORDINGS, excerpt, one_value, rewritten

from unipixel_jax.cli import main
from unipixel_jax.convert import sources, to_jax
from unipixel_jax.errors import UserError
from unipixel_jax.infer.loading import load
from unipixel_jax.parity import compare
from unipixel_jax.parity.against import compare_recordings
from unipixel_jax.parity.blocks import outputs_by_block
from unipixel_jax.parity.recording import open_recording
from unipixel_jax.parity.replay import Context
from unipixel_jax.parity.run import to_json

F32, BF16 = jnp.dtype("float32"), jnp.dtype("bfloat16")


def checks(first, second):
    """Every check of the comparison of two recordings by case and name."""
    return {(result.name, check.name): check for result in compare_recordings(first, second) for check in result.checks}


def recorded(name):
    return open_recording(RECORDINGS / name)


@pytest.mark.parametrize("name", ["nano_a", "nano_a_bf16", "nano_b", "sam2_nano"])
def test_a_recording_agrees_with_itself(name):
    results = list(compare_recordings(recorded(name), recorded(name)))
    assert [result.name for result in results] == ["checkpoint", *(case.name for case in recorded(name).cases)]
    assert all(result.passed for result in results)
    assert all(check.relative_error == check.max_error == 0 for result in results for check in result.checks)


def test_bfloat16_is_as_far_from_float32_as_rounding_explains():
    results = list(compare_recordings(recorded("nano_a"), recorded("nano_a_bf16")))
    assert [result.name for result in results] == ["checkpoint", *(case.name for case in recorded("nano_a_bf16").cases)]
    assert to_json(results)["passed"] is True
    found = checks(recorded("nano_a"), recorded("nano_a_bf16"))
    # both were made of the same random numbers, which the second rounds
    assert found["checkpoint", "weights"].relative_error == 0
    for name in [("text", "hidden_before_norm"), ("vision_window_edges", "embeds"), ("refer", "seg_tokens"), ("memory", "logits")]:
        assert 0.01 < found[name].relative_error < found[name].allowed == 2 * compare.BF16_HIDDEN
    assert 0.004 < found["sam2_image", "fpn.2"].relative_error < found["sam2_image", "fpn.2"].allowed == 2 * compare.BF16_SAM
    # rounding decides tokens: shown, not judged
    assert found["generate", "tokens"].relative_error == 0.5 and found["generate", "tokens"].passed
    assert ("sam2_video", "low_res_masks[0]") in found and ("sam2_video", "low_res_masks") not in found


CHANGED = {
    "text": ("logits", (0, 0, 3), 0.01),
    "vision_window_edges": ("merger_input", (0, 0), np.nan),
    "sam2_image": ("fpn.0", (0, 1, 2, 3), 0.05),
    "sam2_video": ("masks", (0, slice(None), slice(0, 8)), None),
    "generate": ("tokens", 2, 1),
    "train_loss": ("grad.seg_head.1.bias", 0, 1.0),
    "train_steps_seg": ("losses", 3, 0.1),
    "rope_index": ("position_ids", (0, 0, 5), 1),
}


@pytest.mark.parametrize("case", CHANGED)
def test_one_value_that_changed_is_found(tmp_path, case):
    key, index, add = CHANGED[case]
    changed = excerpt(tmp_path / "recording", "nano_a", [case], one_value(key, index, add))
    assert [name for name, check in checks(changed, recorded("nano_a")).items() if not check.passed] == [(case, key)]


def test_a_frame_that_changed_is_found_in_a_long_clip(tmp_path):
    changed = excerpt(tmp_path / "recording", "nano_b", ["sam2_video"], one_value("low_res_masks", (0, 13, 2, 2), 1.0))
    (wrong,) = (check for check in checks(changed, recorded("nano_b")).values() if not check.passed)
    assert wrong.name == "low_res_masks" and wrong.max_error == pytest.approx(1.0)


def test_padding_of_texts_is_not_compared(tmp_path):
    source = next(case for case in recorded("nano_a").cases if case.name == "text")
    padded = tuple(np.argwhere(source.input("attention_mask") == 0)[0])
    changed = excerpt(tmp_path / "recording", "nano_a", ["text"], one_value("logits", padded, 100.0))
    assert checks(changed, recorded("nano_a"))["text", "logits"].relative_error == 0


def test_an_object_that_is_absent_in_one_of_the_two_is_found_in_bfloat16(tmp_path):
    last = float(next(case for case in recorded("nano_a_bf16").cases if case.name == "sam2_video").outputs["object_score_logits"][-1, 0])
    changed = excerpt(tmp_path / "recording", "nano_a_bf16", ["sam2_video"], one_value("object_score_logits", (-1, 0), -2 * last))
    assert [name for name, check in checks(changed, recorded("nano_a_bf16")).items() if not check.passed] == [("sam2_video", "object present")]


def test_other_weights_are_named(tmp_path):
    other = excerpt(tmp_path / "recording", "nano_a", ["text"])
    (other.root / "checkpoint").unlink()
    shutil.copytree(RECORDINGS / "nano_a" / "checkpoint", other.root / "checkpoint")
    file = other.root / "checkpoint" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 0x40
    file.write_bytes(data)
    (check,) = [check for check in checks(other, recorded("nano_a")).values() if not check.passed]
    assert check.name.startswith("weights: ") and check.relative_error > 1


REFUSED = {
    "another input": ("text", rewritten("input_ids", np.ones((2, 19), np.int64)), r"not made of the same inputs \(inputs\.input_ids differs\): record both"),
    "another kind": ("text", lambda case, tensors: None, r"not made of the same inputs \(the kinds are vision and text\)"),
    "fewer outputs": ("text", lambda case, tensors: tensors.pop("outputs.logits"), r"have different outputs \(logits\)"),
    "outputs of another rank": ("text", lambda case, tensors: tensors.update({"outputs.logits": np.zeros(3, np.float32)}), "cannot be replayed"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_recordings_that_do_not_belong_together_get_one_clear_line(tmp_path, fault):
    case, change, message = REFUSED[fault]
    other = excerpt(tmp_path / "recording", "nano_a", [case], change)
    if fault == "another kind":
        description = json.loads((other.root / "export.json").read_text())
        description["cases"][0]["kind"] = "vision"
        (other.root / "export.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match=message) as caught:
        list(compare_recordings(open_recording(other.root), recorded("nano_a")))
    assert "\n" not in str(caught.value)


def test_recordings_of_other_models_get_one_clear_line():
    with pytest.raises(UserError, match=r"hold different models .*: record both from one checkpoint"):
        list(compare_recordings(recorded("nano_a"), recorded("nano_b")))
    with pytest.raises(UserError, match="have no case in common"):
        list(compare_recordings(recorded("nano_a"), recorded("sam2_nano")))


def test_the_command_compares_two_recordings(tmp_path, capsys):
    first, second, report = RECORDINGS / "nano_a", RECORDINGS / "nano_a_bf16", tmp_path / "report.json"
    assert main(["parity", str(first), "--against", str(second), "--json", str(report)]) == 0
    said = capsys.readouterr().out
    assert f"{first}: cpu, float32, torch 2.14.1+cu130; it alone has rope_index, train_loss, smart_resize" in said
    assert f"{second}: cpu, bfloat16, torch 2.14.1+cu130\n" in said and said.endswith("9 cases, all passed\n")
    assert [case["name"] for case in json.loads(report.read_text())["cases"]] == ["checkpoint", *(case.name for case in recorded("nano_a_bf16").cases)]
    changed = excerpt(tmp_path / "recording", "nano_a", ["text"], one_value("logits", (0, 0, 3), 0.01))
    assert main(["parity", str(changed.root), "--against", str(first)]) == 1
    assert capsys.readouterr().out.endswith("1 of 2 cases FAILED: text\n")


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    root = RECORDINGS / "nano_a_bf16"
    folder = tmp_path_factory.mktemp("converted") / "model"
    to_jax.convert(sources.open_checkpoint(root / "checkpoint"), folder)
    return Context(load(folder, F32), root, True)


LAST = {"vision_window_edges": "block 3", "refer": "block 2", "sam2_image": "level 2"}


@pytest.mark.parametrize("name", LAST)
def test_blocks_compute_what_towers_return_and_rounding_grows(context, name):
    case = next(case for case in recorded("nano_a_bf16").cases if case.name == name)
    exact, rounded = (outputs_by_block(case, context, dtype) for dtype in (F32, BF16))
    assert list(exact)[-1] == LAST[name] and exact.keys() == rounded.keys()
    errors = {key: compare.close(key, rounded[key], exact[key], 0).relative_error for key in exact}
    first, *_ = errors
    assert 0 < errors[first] < 0.005 < errors[LAST[name]] < 0.02
    if name == "refer":
        # the last block's output is what the reference recorded in bfloat16, but for its rounding
        assert compare.close(name, exact["block 2"], case.outputs["hidden_before_norm"][0], compare.BF16_HIDDEN).passed
    if name == "sam2_image":
        assert compare.close(name, exact["level 2"].transpose(0, 3, 1, 2), case.outputs["fpn.2"], compare.BF16_SAM).passed


def test_blocks_of_other_cases_are_refused(context):
    case = next(case for case in recorded("nano_a_bf16").cases if case.name == "generate")
    with pytest.raises(UserError, match="generate is a case of the kind generate, expected vision, multimodal or sam2_image"):
        outputs_by_block(case, context, F32)
