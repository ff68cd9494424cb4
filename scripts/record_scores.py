#!/usr/bin/env python3
"""Score drawn predictions with the reference's own scorers, and write data, predictions and scores as a case for tests.

    python scripts/record_scores.py CLONE OUT

Only ``OUT/expected.json`` need be kept: ``draw_case`` draws the same data and predictions again.

CLONE is a clone of github.com/PolyU-ChenLab/UniPixel. It runs where the reference's scorers do: with nncore, opencv, pycocotools, scikit-image, pandas and
tabulate, but without torch. ReVOS's A and R compare 1 with 255 in the reference; they are recorded from masks of 0 and 1.
"""

from __future__ import annotations

import argparse
import json
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from sample_data.benchmarks import write_groundmore, write_videos

SEED = 1


def main() -> int:
    """Parse the command line, draw, score, and write the case; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clone", type=Path, help="a clone of the reference")
    parser.add_argument("out", type=Path, help="the folder to write, which must not exist")
    args = parser.parse_args()
    clone, out = args.clone.resolve(), args.out.resolve()
    if out.exists():
        parser.error(f"{out} exists: choose another folder")
    draw_case(out)
    expected = {name: run(clone, out, script, name, *before) for name, script, before in SCORERS}
    (out / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    return 0


def draw_case(out: Path) -> None:
    """Draw data and predictions."""
    write_videos(out / "data", SEED)
    write_groundmore(out / "data", SEED)
    rng = np.random.default_rng([SEED, 9])
    draw_video_predictions(out, rng)
    draw_records(out / "predictions", rng)


SCORERS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("mevis_val_u_seg", "eval_seg", ("mevis",)),
    ("ref_sav_seg", "eval_seg", ("ref_sav",)),
    ("ref_davis17_seg", "eval_seg", ("ref_davis17",)),
    ("revos_seg", "eval_revos", ()),
    ("groundmore_seg", "eval_groundmore", ()),
    ("refcoco_val_seg", "eval_refcoco", ()),
    ("mvbench", "eval_general", ()),
    ("pixelqa_mix", "eval_general", ()),
)
"""The folder of predictions, the reference's script, and its arguments before the folder."""


PLACES = {
    "mevis_val_u_seg": ("mevis/valid_u/meta_expressions.json", "mevis/valid_u/mask_dict.json"),
    "ref_sav_seg": ("ref_sav/valid/meta_expressions_valid.json", "ref_sav/valid/mask_dict.json"),
    "revos_seg": ("revos/meta_expressions_valid_.json", "revos/mask_dict.json"),
    "ref_davis17_seg": ("ref_davis17/meta_expressions/valid/meta_expressions.json", "ref_davis17/valid/mask_dict.pkl"),
}
"""The lists of expressions and of masks by the folder of predictions."""


def draw_video_predictions(out: Path, rng: np.random.Generator) -> None:
    """Draw predictions of the video benchmarks: the truth moved, cut or lost; and, of MeViS, a video, an expression and a frame that are missing."""
    from pycocotools import mask as coco

    for folder, (listed, masked) in PLACES.items():
        videos = json.loads((out / "data" / listed).read_text())["videos"]
        content = (out / "data" / masked).read_bytes()
        masks = pickle.loads(content) if masked.endswith(".pkl") else json.loads(content)
        order = sorted((video, number) for video, meta in videos.items() for number in meta["expressions"])
        for video, meta in videos.items():
            for number, item in meta["expressions"].items():
                tracks = [masks[str(order.index((video, number)))]] if masked.endswith(".pkl") else [masks[str(i)] for i in item["anno_id"]]
                size = next(region["size"] for track in tracks for region in track if region)
                for place, frame in enumerate(meta["frames"]):
                    regions = [coco.decode(track[place]).astype(bool) for track in tracks if track[place]]
                    truth = np.logical_or.reduce([np.zeros(size, bool), *regions])
                    write_mask(out / "predictions" / folder / video / number / f"{frame}.png", changed(truth, rng))
    mevis = out / "predictions/mevis_val_u_seg"
    shutil.rmtree(mevis / "three")
    shutil.rmtree(mevis / "two/0")
    next(iter(sorted((mevis / "two/1").iterdir())[1:])).unlink()
    for video in json.loads((out / "data/groundmore/test_v2.json").read_text())["videos"]:
        for label in sorted((out / "data/groundmore/annotations" / video / "masks").glob("*.png")):
            for number in range(4):
                truth = np.asarray(Image.open(label)) == number % 3 + 1
                write_mask(out / "predictions/groundmore_seg" / video / str(number) / label.name, changed(truth, rng))


def changed(truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a mask like the truth: moved by some pixels, without some of them, or empty."""
    if rng.random() < 0.1:
        return np.zeros_like(truth)
    moved = np.roll(truth, rng.integers(-4, 5, 2), (0, 1))
    return moved & (rng.random(truth.shape) > rng.choice((0.0, 0.02)))


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Write a mask as the reference does: 0 and 255."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask.astype(np.uint8) * 255).save(path)


def draw_records(folder: Path, rng: np.random.Generator) -> None:
    """Draw the records of RefCOCO, of questions, and of PixelQA."""
    photos = []
    for number in range(30):
        union = int(rng.integers(0, 900))
        inter = int(rng.integers(0, union + 1))
        iou = inter / union if union else 1
        photos.append({"vid": f"photo_{number}", "qid": number, "inter": inter, "union": union, "iou": iou, "hit": bool(rng.random() < 0.5)})
    write_records(folder / "refcoco_val_seg", photos)
    answers = ("A", "(B) it", "c.", "d", "Bob", "E", "(A)", "?", "b) no")
    tasks: list[Any] = ["Action Count", "Object Shuffle", ["State Change", "Action Count"]]
    for name in ("mvbench", "pixelqa_mix"):
        records: list[dict[str, Any]] = []
        for number in range(40):
            record = {"task": tasks[number % 3], "options": ["x"] * int(rng.integers(2, 5)), "ans": "ABCD"[rng.integers(2)]}
            record["response"] = str(rng.choice(answers))
            if name == "pixelqa_mix":
                count = int(rng.integers(1, 4))
                record |= {"j_values": rng.random(count).tolist(), "f_values": rng.random(count).tolist()}
            elif number == 7:
                del record["response"]
            records.append(record)
        write_records(folder / name, records)


def write_records(folder: Path, records: list[dict[str, Any]]) -> None:
    """Write records as two shards do."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(2):
        (folder / f"output_{index}.json").write_text(json.dumps(records[index::2]))


def run(clone: Path, out: Path, script: str, folder: str, *before: str) -> Any:
    """Run one of the reference's scorers on a copy of the predictions, and return its scores."""
    with tempfile.TemporaryDirectory() as place:
        predictions = Path(place) / folder
        shutil.copytree(out / "predictions" / folder, predictions)
        done = call(clone, out, script, *before, str(predictions))
        if script == "eval_seg":
            return json.loads((predictions / f"{before[0]}.json").read_text())
        if script == "eval_groundmore":
            return json.loads((predictions / "groundmore.json").read_text())
        if script == "eval_revos":
            scores = json.loads((predictions / "revos_valid.json").read_text())
            for path in predictions.rglob("*.png"):
                Image.fromarray((np.asarray(Image.open(path)) > 0).astype(np.uint8)).save(path)
            call(clone, out, script, str(predictions))
            booleans = json.loads((predictions / "revos_valid.json").read_text())
            return {group: {name: booleans[group][name] if name in "AR" else value for name, value in own.items()} for group, own in scores.items()}
        if script == "eval_refcoco":
            return {name: float(re.search(rf"{name}: ([\d.]+)", done)[1]) for name in ("CIoU", "GIoU", "BBox Acc")}
        rows = [[cell.strip() for cell in line.strip("| \n").split("|")] for line in done.splitlines() if line.startswith("|")][1:]
        scores = {task: {"samples": int(samples), "failed": int(failed), "acc": float(acc)} for task, samples, failed, acc in rows}
        if folder.startswith("pixelqa"):
            done = call(clone, out, "eval_pixelqa", str(predictions))
            scores["masks"] = {name: float(re.search(rf"^{name}: ([\d.]+)", done, re.MULTILINE)[1]) for name in ("J", "F", "J&F")}
        return scores


def call(clone: Path, out: Path, script: str, *arguments: str) -> str:
    """Run a script in the folder of the data, where it looks for ``data/``, and return what it printed."""
    done = subprocess.run([sys.executable, str(clone / f"unipixel/eval/{script}.py"), *arguments], cwd=out, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{script} failed:\n{done.stderr[-2000:]}")
    return done.stdout + done.stderr


if __name__ == "__main__":
    sys.exit(main())
