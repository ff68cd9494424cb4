"""Benchmarks run on drawn data with the embedded model: layouts, scores, resuming at any kill, shards, failures, and reports."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
from sample_data.benchmarks import write_benchmarks

from unipixel_jax import Mask, UniPixel
from unipixel_jax.cli import main
from unipixel_jax.eval.benchmarks import BENCHMARKS
from unipixel_jax.eval.question_samples import REGION_START, _list_marked
from unipixel_jax.eval.samples import Settings, segmentation_prompt
from unipixel_jax.processing.resize import FACTOR


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_benchmarks(folder)
    return folder


def run(data, out, name, *options):
    assert main(["eval", name, "--data", str(data), "--out", str(out), "--dtype", "float32", "--devices", "1", "--workers", "1", *options]) == 0


def results(out, folder):
    return json.loads((out / f"{folder}_results/results.json").read_text())


def test_photos_are_scored_as_their_masks_are(data, tmp_path, capsys):
    run(data, tmp_path, "refcoco", "--split", "testA")
    found = results(tmp_path, "refcoco_testA_seg")
    records = json.loads((tmp_path / "refcoco_testA_seg/output_0.json").read_text())
    assert len(records) == 12 and found["samples"] == 12 and found["failures"] == []
    assert found["scores"]["CIoU"] == pytest.approx(100 * sum(r["inter"] for r in records) / sum(r["union"] for r in records))
    assert found["scores"]["GIoU"] > 60  # the small model knows these shapes
    assert found["words"]["prompt"].startswith("Please segment the ") and found["dtype"] == "float32" and len(found["weights"]) == 64
    assert "the device waited for media" in capsys.readouterr().out


def test_a_clip_has_a_mask_on_every_frame_and_a_run_goes_on(data, tmp_path, capsys):
    run(data, tmp_path, "ref_davis17", "--limit", "4")
    folder = tmp_path / "ref_davis17_seg"
    meta = json.loads((data / "ref_davis17/meta_expressions/valid/meta_expressions.json").read_text())["videos"]
    first = next(iter(meta))
    assert sorted(path.stem for path in (folder / first / "0").iterdir()) == meta[first]["frames"]
    with Image.open(next((folder / first / "0").iterdir())) as image:
        assert image.mode == "L" and set(np.unique(np.asarray(image)).tolist()) <= {0, 255}
    before = results(tmp_path, "ref_davis17_seg")
    assert before["scores"]["J&F"] > 50 and len(before["per_sample"]) == 4 and before["failures"] == []
    journal = next((tmp_path / "ref_davis17_seg_results").glob("journal-*.jsonl"))
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:3]) + lines[3][:10])  # killed within the third sample's line
    shutil.rmtree(folder / first / "2")
    capsys.readouterr()
    run(data, tmp_path, "ref_davis17", "--limit", "4")
    assert "2 samples in" in capsys.readouterr().out
    assert results(tmp_path, "ref_davis17_seg")["per_sample"] == before["per_sample"]
    assert main(["eval", "ref_davis17", "--data", str(data), "--out", str(tmp_path), "--limit", "5", "--dtype", "float32"]) == 1
    assert "is of a run with other samples (4, not 5)" in capsys.readouterr().err


def test_marked_objects_are_asked_about_as_in_python(data, tmp_path):
    run(data, tmp_path, "videorefer_q", "--limit", "3")
    records = json.loads((tmp_path / "videorefer_bench_q/output.json").read_text())
    model = UniPixel.from_pretrained(dtype="float32")
    for clip, record in zip(_list_marked(data, Settings()), records, strict=False):
        frames = np.stack([frame.pixels for frame in clip.open()])
        words = "\n".join([f"{clip.item['Question']}\nOptions:", *clip.item["options"], "Please only give the best option."])
        marks = [Mask(mask) for mask in clip.masks(False, frames.shape[1:3])]
        question = words.replace("<object0><region>", "<region>").replace("<object1><region>", "<region>")
        answer = model.ask(frames, question, marks, answer_start=REGION_START, min_pixels=100 * FACTOR**2, max_pixels=144 * FACTOR**2)
        assert record["response"] == answer.text.removeprefix(REGION_START)
        assert record["task"] == clip.item["type"] and record["ans"] == clip.item["Answer"][1]


def test_objects_that_are_pointed_at_are_segmented_before_they_are_asked_about(data, tmp_path):
    run(data, tmp_path, "pixelqa", "--limit", "2", "--prompt-type", "box")
    found = results(tmp_path, "pixelqa_box")
    records = json.loads((tmp_path / "pixelqa_box/output.json").read_text())
    assert [len(record["j_values"]) for record in records] == [1, 2]
    assert found["scores"]["all"]["samples"] == 2 and 0 < found["scores"]["masks"]["J"] < 100
    assert found["words"]["given_answer"] == "[0] <|seg|>"
    assert found["words"]["prompt"].startswith("What is [0] <|ref|>?\nOptions:\n(A) ")
    assert found["words"]["prompt"].endswith(". Please localize the relevant objects with IDs.")


def test_questions_about_videos_and_frames(data, tmp_path):
    run(data, tmp_path, "mvbench", "--limit", "2")
    records = json.loads((tmp_path / "mvbench/output.json").read_text())
    assert [record["task"] for record in records] == ["Episodic Reasoning", "Action Sequence"] and [record["ans"] for record in records] == ["A", "B"]
    words = results(tmp_path, "mvbench")["words"]
    assert words["prompt"] == "what moves?\nOptions:\n(A) A shape\n(B) A dog\n(C) Nothing\nPlease only give the best option."
    assert words["answer_start"] == "Best Option: ("


def test_shards_meet_and_failures_are_listed(data, tmp_path, capsys):
    damaged = tmp_path / "data"
    shutil.copytree(data / "mevis", damaged / "mevis")
    listed = damaged / "mevis/valid_u/meta_expressions.json"
    content = json.loads(listed.read_text())
    content["videos"]["one"]["expressions"]["0"]["exp"] = "."
    listed.write_text(json.dumps(content))
    (damaged / "mevis/valid_u/JPEGImages/two/00001.jpg").write_bytes(b"no image")
    run(damaged, tmp_path, "mevis", "--shard", "0/2", "--limit", "6")
    assert "the last one to end scores all" in capsys.readouterr().out and not (tmp_path / "mevis_val_u_seg_results/results.json").exists()
    run(damaged, tmp_path, "mevis", "--shard", "1/2", "--limit", "6")
    failed = [json.loads((tmp_path / f"mevis_val_u_seg/failed_{i}.json").read_text()) for i in range(2)]
    reasons = {entry["anno"]: entry["err"] for entry in failed[0] + failed[1]}
    assert "names nothing" in reasons["one/0"] and all("1 of " in reasons[f"two/{i}"] for i in range(3)) and len(reasons) == 4
    assert not any(np.asarray(Image.open(path)).any() for path in (tmp_path / "mevis_val_u_seg/one/0").iterdir())
    assert results(tmp_path, "mevis_val_u_seg")["samples"] == 6 == len(results(tmp_path, "mevis_val_u_seg")["per_sample"])


def test_a_server_gets_a_zip(data, tmp_path):
    run(data, tmp_path, "ref_youtube_vos", "--limit", "1")
    with zipfile.ZipFile(tmp_path / "ref_youtube_vos_val_seg_results/submission.zip") as archive:
        names = archive.namelist()
    assert names and all(name.startswith("Annotations/one/0/") and name.endswith(".png") for name in names)
    assert results(tmp_path, "ref_youtube_vos_val_seg")["scores"] is None


def test_consistent_runs_say_what_changes(data, tmp_path, capsys):
    for options in ((), ("--consistent", "track")):
        run(data, tmp_path, "ref_davis17", "--limit", "2", "--sample-frames", "2", *options)
    found = results(tmp_path, "ref_davis17_seg_track")
    assert len(list((tmp_path / "ref_davis17_seg_track/zebra/0").iterdir())) == 2
    assert found["inconsistent"]["scores"].keys() == found["scores"].keys()
    assert "the ordinary run on the same frames, and the change:" in capsys.readouterr().out


def test_a_report_shows_scores_beside_the_published_ones(data, tmp_path, capsys):
    run(data, tmp_path, "ref_davis17", "--limit", "2", "--sample-frames", "2")
    capsys.readouterr()
    assert main(["eval", "report", str(tmp_path), "--out", str(tmp_path / "report")]) == 0
    assert "74.20" in capsys.readouterr().out
    assert "| Ref-DAVIS17 (valid, first 2) | J&F |" in (tmp_path / "report/report.md").read_text()
    page = (tmp_path / "report/report.html").read_text()
    assert page.count("data:image/png;base64,") == 3 and "no folder for the video" not in page
    with Image.open(tmp_path / "report/report.png") as image:
        assert image.width > 500
    assert main(["eval", "report", str(tmp_path / "report")]) == 1
    assert "has no results.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("query", "The Red disc.", "Please segment the Red disc in this video."),
        ("query", "The an apple", "Please segment the apple in this video."),
        ("sentence", "Who runs?", "Who runs? Please provide the segmentation mask."),
        ("question", "Who runs?", "Who runs? Please answer the question and provide the segmentation mask."),
        ("description", "A dog.", "Please segment the object according to the description: A dog."),
    ],
)
def test_the_words_are_the_protocol(kind, text, expected):
    assert segmentation_prompt(kind, text, "video") == expected


def command(data, out, name, options):
    # as ``run`` does it, so that both find each other's programs in the cache
    arguments = ["eval", name, "--data", str(data), "--out", str(out), "--dtype", "float32", "--devices", "1", "--workers", "1", *options]
    return subprocess.Popen([sys.executable, "-m", "unipixel_jax.cli", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def lines_in(out):
    return sum(path.read_bytes().count(b"\n") for path in out.glob("*_results/journal-*.jsonl"))


def killed(data, out, name, options, kills, seed):
    """Kill a run that many times, each after another sample is done and a while, and let it end; the number of kills that hit."""
    rng, hit = random.Random(seed), 0
    for _ in range(kills):
        process, before = command(data, out, name, options), lines_in(out)
        while process.poll() is None and lines_in(out) <= max(before, 1):
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        hit += process.returncode == -signal.SIGKILL
    process = command(data, out, name, options)
    assert process.wait() == 0, process.stderr.read()
    process.communicate()
    return hit


def scores_of(out):
    return {path.parent.name: {key: json.loads(path.read_text())[key] for key in ("scores", "per_sample", "failures")} for path in out.glob("*/results.json")}


@pytest.mark.slow
def test_killed_runs_end_with_the_same_scores(data, tmp_path):
    options = ("--rows", "2")
    assert killed(data, tmp_path / "killed", "refcoco", options, kills=2, seed=0) >= 1
    run(data, tmp_path / "straight", "refcoco", *options)
    assert scores_of(tmp_path / "killed") == scores_of(tmp_path / "straight") != {}
    assert not list((tmp_path / "killed").rglob("*.part*"))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in BENCHMARKS if name != "videorefer_d"])
def test_every_benchmark_survives_ten_kills(data, tmp_path, name):
    options = ("--rows", "2")
    assert killed(data, tmp_path / "killed", name, options, kills=10, seed=1) >= 1
    run(data, tmp_path / "straight", name, *options)
    assert scores_of(tmp_path / "killed") == scores_of(tmp_path / "straight") != {}
