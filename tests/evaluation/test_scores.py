"""Scores equal those that the reference's own scorers computed, and predictions that do not fit are refused or counted."""

import http.server
import json
import pickle
import shutil
import subprocess
import sys
import threading
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from unipixel_jax.cli import main
from unipixel_jax.errors import UserError
from unipixel_jax.eval.benchmarks import BENCHMARKS, find_benchmark
from unipixel_jax.eval.metrics import BOUNDARY_TOLERANCE, box_iou, box_of_parts, score_frame, score_volume
from unipixel_jax.eval.records import chosen_letter
from unipixel_jax.eval.scoring import score

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
from record_scores import draw_case

HERE = Path(__file__).parent
CASE_A = HERE / "case_a"
NAMES = {
    "mevis_val_u_seg": "mevis",
    "ref_sav_seg": "ref_sav",
    "ref_davis17_seg": "ref_davis17",
    "revos_seg": "revos",
    "groundmore_seg": "groundmore",
    "refcoco_val_seg": "refcoco",
    "reason_seg_val_seg": "reason_seg",
    "videorefer_bench_q": "videorefer_q",
    "mvbench": "mvbench",
    "pixelqa_point": "pixelqa",
    "pixelqa_mix": "pixelqa",
}


@pytest.fixture(scope="module")
def case_b(tmp_path_factory):
    folder = tmp_path_factory.mktemp("case_b")
    draw_case(folder)
    return folder


def scored(case, folder, workers=1, split=None):
    benchmark = find_benchmark(NAMES[folder])
    return score(benchmark, benchmark.split_of(split), case / "data", case / "predictions" / folder, workers)


def assert_equal(found, expected, ignored=()):
    """Equal to the digits that the expected numbers have; those that were not rounded to 1e-9."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, dict):
            assert_equal(found[name], value, ignored)
        elif name not in ignored:
            digits = -Decimal(repr(value)).as_tuple().exponent
            assert found[name] == pytest.approx(value, abs=1e-9) or round(found[name], digits) == value, name


@pytest.mark.parametrize("folder", json.loads((CASE_A / "expected.json").read_text()))
def test_scores_are_those_of_the_reference(folder):
    expected = json.loads((CASE_A / "expected.json").read_text())[folder]
    # A and R of ReVOS were computed on 0 and 255 here, which means nothing; the other case has them on booleans.
    assert_equal(scored(CASE_A, folder).scores, expected, ignored=("A", "R") if folder == "revos_seg" else ())


@pytest.mark.parametrize("folder", json.loads((HERE / "case_b.json").read_text()))
def test_scores_of_a_drawn_case_are_those_of_the_reference(folder, case_b):
    assert_equal(scored(case_b, folder).scores, json.loads((HERE / "case_b.json").read_text())[folder])


def test_missing_expressions_are_counted_in_the_corrected_scores(case_b):
    found = scored(case_b, "mevis_val_u_seg")
    reasons = {failure["sample"]: failure["reason"] for failure in found.failures}
    assert {name: reason for name, reason in reasons.items() if name.startswith("three/")} == dict.fromkeys(
        ("three/0", "three/1", "three/2"), "there is no folder for the video"
    )
    assert "does not exist" in reasons["two/0"] and "does not exist" in reasons["two/1"] and len(reasons) == 5
    assert found.corrected["J"] == pytest.approx(found.scores["J"] * 7 / 9)
    assert len(found.why) == 1 and len(found.per_sample) == 9


def test_more_processes_give_the_same(case_b):
    assert scored(case_b, "groundmore_seg", workers=2) == scored(case_b, "groundmore_seg")


def slow_f(truth, found):
    """The boundary measure by its definition, with whole frames dilated."""

    def edge(mask):
        right, down = np.pad(mask, ((0, 0), (0, 1)))[:, 1:], np.pad(mask, ((0, 1), (0, 0)))[1:]
        across = np.pad(mask, ((0, 1), (0, 1)))[1:, 1:]
        out = (mask ^ right) | (mask ^ down) | (mask ^ across)
        out[-1] = mask[-1] ^ right[-1]
        out[:, -1] = mask[:, -1] ^ down[:, -1]
        out[-1, -1] = False
        return out

    radius = int(np.ceil(BOUNDARY_TOLERANCE * np.hypot(*truth.shape)))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    one, other = edge(truth), edge(found)
    if not one.any() or not other.any():
        return float(one.any() == other.any())
    recall = (one & ndimage.binary_dilation(other, y * y + x * x <= radius * radius)).sum() / one.sum()
    precision = (other & ndimage.binary_dilation(one, y * y + x * x <= radius * radius)).sum() / other.sum()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def test_the_boundary_measure_is_the_slow_one():
    rng = np.random.default_rng(0)
    scores = []
    for _ in range(300):
        size = rng.integers(1, 300 if rng.random() < 0.1 else 40, 2)
        masks = []
        for _ in range(2):
            mask = np.zeros(size, bool)
            y, x = (int(rng.integers(side)) for side in size)
            mask[y : y + int(rng.integers(1, size[0] + 1)), x : x + int(rng.integers(1, size[1] + 1))] = True
            masks.append(mask & (rng.random(size) < rng.choice((0.0, 0.5, 0.95, 1.0))))
        found = score_frame(*masks)
        either = (masks[0] | masks[1]).sum()
        assert found.j == pytest.approx((masks[0] & masks[1]).sum() / either if either else 1.0, abs=1e-12)
        assert found.f == pytest.approx(slow_f(*masks), abs=1e-12)
        scores.append(found.f)
    assert 0 < np.mean(scores) < 1


def test_boxes_and_volumes():
    mask = np.zeros((20, 30), bool)
    assert box_of_parts(mask) is None
    mask[2, 3:12] = True  # nine pixels: too small a part
    assert box_of_parts(mask) is None
    mask[3, 12] = True  # the tenth touches it by a corner
    assert box_of_parts(mask) == (3, 2, 12, 3)
    assert box_iou((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(1 / 3)
    assert box_iou((0, 0, 0, 0), (0, 0, 0, 0)) == 0
    whole = np.ones((2, 4, 4), bool)
    half = whole.copy()
    half[1] = False
    assert score_volume(whole, half) == pytest.approx((0.5, 2 / 3), abs=1e-6)
    assert score_volume(~whole, ~whole) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("answer", "letter"), [("A", "a"), ("(B) it is", "b"), ("c. thing", "c"), ("Dog", "d"), ("", ""), ("() x", ""), ("best: A", "b"), (" A", "")]
)
def test_the_letter_of_an_answer(answer, letter):
    assert chosen_letter(answer) == letter


def test_the_command_prints_and_writes_scores(tmp_path, capsys):
    out = tmp_path / "scores.json"
    command = ["eval", "score", "reason_seg", "--split", "val", "--predictions", str(CASE_A / "predictions/reason_seg_val_seg"), "--json", str(out)]
    assert main(command) == 0
    assert "GIoU" in capsys.readouterr().out
    written = json.loads(out.read_text())
    assert written["benchmark"] == "reason_seg" and written["split"] == "val" and written["corrected"] is None
    assert_equal(written["scores"], json.loads((CASE_A / "expected.json").read_text())["reason_seg_val_seg"])
    assert len(written["per_sample"]) == sum(len(json.loads(path.read_text())) for path in (CASE_A / "predictions/reason_seg_val_seg").iterdir())


def test_ignored_pixels_are_left_out_of_the_corrected_scores(tmp_path):
    records = [{"vid": "a", "qid": 0, "inter": 5, "union": 20, "iou": 0.25, "without_ignored": {"inter": 5, "union": 10, "iou": 0.5}}]
    (tmp_path / "output_0.json").write_text(json.dumps(records))
    found = score(BENCHMARKS["reason_seg"], "val", None, tmp_path)
    assert found.scores["GIoU"] == 25 and found.corrected["GIoU"] == 50 and found.why


def test_an_empty_answer_counts_as_failed(tmp_path):
    records = [{"options": ["x", "y"], "ans": "A", "response": answer} for answer in ("", "A")]
    (tmp_path / "output.json").write_text(json.dumps(records))
    found = score(BENCHMARKS["mvbench"], "test", None, tmp_path)
    assert found.scores["all"] == {"samples": 2, "failed": 1, "acc": 50.0} and found.scores["unknown"]["failed"] == 1 and found.why


def refused(name, predictions, split=None, data=CASE_A / "data"):
    with pytest.raises(UserError) as error:
        benchmark = find_benchmark(name)
        score(benchmark, benchmark.split_of(split), data, predictions)
    return str(error.value)


def test_predictions_of_another_benchmark_are_refused(tmp_path):
    predictions = CASE_A / "predictions"
    assert "has no folder for any of the 3 videos of revos" in refused("revos", predictions / "mevis_val_u_seg")
    assert "expected 80x56 as the video" in refused("mevis", predictions / "ref_davis17_seg")
    assert "has no 'options'" in refused("mvbench", predictions / "refcoco_val_seg")
    assert "has no 'j_values'" in refused("pixelqa", predictions / "mvbench")
    assert "no records with 'hit'" in refused("refcoco", predictions / "reason_seg_val_seg")
    assert "has no records in output*.json" in refused("mvbench", predictions / "mevis_val_u_seg")
    assert "not a folder" in refused("mevis", tmp_path / "absent") and "not a folder" in refused("mvbench", tmp_path / "absent")


def test_wrong_splits_and_names_are_told():
    assert "mevis has no split 'testA', expected one of: valid_u, valid" in refused("mevis", CASE_A, "testA")
    assert "not public" in refused("mevis", CASE_A, "valid") and "not public" in refused("ref_youtube_vos", CASE_A)
    assert "did you mean mevis?" in refused("mevi", CASE_A)
    assert "give --data ROOT" in refused("mevis", CASE_A / "predictions/mevis_val_u_seg", data=None)
    assert find_benchmark("revos").split_of("val") == "valid"


class Harm:
    """A pickle of it runs code."""

    def __reduce__(self):
        return print, ("harm",)


def test_broken_data_is_named(tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(CASE_A / "data/ref_davis17", data / "ref_davis17")
    predictions = CASE_A / "predictions/ref_davis17_seg"
    masks = data / "ref_davis17/valid/mask_dict.pkl"
    masks.write_bytes(pickle.dumps({"0": Harm()}))
    assert "mask_dict.pkl" in refused("ref_davis17", predictions, data=data) and "harm" not in capsys.readouterr().out
    masks.write_bytes(pickle.dumps({"0": [None]}))
    assert "mask_dict.pkl: '1' is missing" in refused("ref_davis17", predictions, data=data)
    listed = data / "ref_davis17/meta_expressions/valid/meta_expressions.json"
    listed.write_text('{"videos": {"a": {"frames": 3}}}')
    assert "meta_expressions.json" in refused("ref_davis17", predictions, data=data)


def test_a_mask_that_is_no_image_is_a_failure(case_b, tmp_path):
    copy = tmp_path / "ref_sav_seg"
    shutil.copytree(case_b / "predictions/ref_sav_seg", copy)
    (copy / "one/0/00000.png").write_bytes(b"no image")
    Image.new("L", (3, 3)).save(copy / "one/1/00001.png")
    found = score(BENCHMARKS["ref_sav"], "valid", case_b / "data", copy)
    reasons = {failure["sample"]: failure["reason"] for failure in found.failures}
    assert "not a PNG image" in reasons["one/0"] and "is 3x3 pixels" in reasons["one/1"] and len(reasons) == 2


@pytest.mark.parametrize("content", ["{}", "[1]", '[{"vid": 1, "qid": 2, "inter": "x", "union": 3, "iou": 0, "hit": true}]', "[", "[]"])
def test_broken_records_are_refused(tmp_path, content):
    (tmp_path / "output_0.json").write_text(content)
    assert "output" in refused("refcoco", tmp_path) or "expected a number" in refused("refcoco", tmp_path)


def test_descriptions_are_marked_by_a_judge(tmp_path, capsys, monkeypatch):
    replies = iter(("1. Subject Correspondence: 4\n2. Appearance Description: 3\n3. Temporal Description: 2\n4. Hallucination Detection: 1", "no idea"))

    class Server(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert asked["model"] == "a-judge" and "##Correct answer: a dog\n##Predicted answer: " in json.dumps(asked).replace("\\n", "\n")
            body = json.dumps({"choices": [{"message": {"content": next(replies)}}]}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    folder = tmp_path / "videorefer_bench_d"
    folder.mkdir()
    (folder / "output.json").write_text(json.dumps([{"vid": "a", "caption": "a dog", "pred": "a cat"}, {"vid": "b", "caption": "a dog"}]))
    command = ["eval", "score", "videorefer_d", "--predictions", str(folder), "--json", str(tmp_path / "scores.json")]
    assert main(command) == 1 and "give --judge-url" in capsys.readouterr().err
    with http.server.HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for _ in range(2):  # the second time nothing is asked
            assert main([*command, "--judge-url", f"http://127.0.0.1:{server.server_port}/v1", "--judge-model", "a-judge"]) == 0
        server.shutdown()
    found = json.loads((tmp_path / "scores.json").read_text())
    assert found["scores"]["All"] == {"score": 2.5} and found["scores"]["Subject Correspondence"] == {"count": 1, "score": 4.0}
    assert found["failures"] == [{"sample": "b", "reason": "there is no description"}]
    assert next(replies) == "no idea"


def test_scoring_imports_no_jax():
    arguments = ["eval", "score", "mvbench", "--predictions", str(CASE_A / "predictions/mvbench")]
    program = f"import sys; from unipixel_jax.cli import main; assert main({arguments!r}) == 0; print(sorted({{'jax', 'flax', 'torch'}} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_missing_package_is_named_with_its_extra():
    arguments = ["eval", "score", "mvbench", "--predictions", str(CASE_A / "predictions/mvbench")]
    program = f"import sys; sys.modules['pycocotools'] = None; from unipixel_jax.cli import main; sys.exit(main({arguments!r}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr == "error: `unipixel-jax eval` needs pycocotools: run pip install 'unipixel-jax[eval]'\n"
