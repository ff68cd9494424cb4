"""The results of many photos and clips in one export: every picture once, with the objects of all its prompts, whatever the order of the results."""

import json
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from exported import disc
from PIL import Image
from pycocotools.coco import COCO

from unipixel_jax.errors import UserError
from unipixel_jax.infer.exports import EXPORTS
from unipixel_jax.infer.exports.many import export_results
from unipixel_jax.infer.job_source import Job
from unipixel_jax.processing.rle import encode_mask

PROMPTS = ("Please segment the dog.", "Segment the cat.", "Find a dog")
"""The first and the last ask for the same class."""
LEFT, RIGHT = disc(30, 40, 15), disc(90, 40, 20) & ~disc(90, 40, 5)
NONE = np.zeros_like(LEFT)


def line(media, prompt, *objects, frames=(0,)):
    """A result, with the masks of each object on each frame."""
    found = [
        {"masks": [encode_mask(mask) for mask in masks], "scores": [0.5 + 0.1 * number] * len(masks), "presence": [1.0] * len(masks)}
        for number, masks in enumerate(objects)
    ]
    return {"media": str(media), "prompt": prompt, "frames": list(frames), "objects": found}


def picture(path, seed=0):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*LEFT.shape, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def jobs(tmp_path):
    """Photos, two of which have the same name, one that failed, and a clip of two frames; with their results in two files, in no order."""
    first, second, failed = picture(tmp_path / "a" / "photo 1.png"), picture(tmp_path / "b" / "photo 1.png"), tmp_path / "c.png"
    empty, clip = picture(tmp_path / "a" / "empty%?.png"), tmp_path / "clip.gif"
    frames = [Image.fromarray(np.full((*LEFT.shape, 3), value, np.uint8)) for value in (10, 200)]
    frames[0].save(clip, save_all=True, append_images=frames[1:])
    made = [Job(first, PROMPTS[0]), Job(first, PROMPTS[1]), Job(second, PROMPTS[2]), Job(failed, PROMPTS[0]), Job(empty, PROMPTS[1]), Job(clip, PROMPTS[0])]
    out = tmp_path / "out"
    out.mkdir()
    clip_line = line(clip, PROMPTS[0], [LEFT, NONE], [RIGHT, RIGHT], frames=(0, 1))
    other = line(first, "Segment what was asked before.", [RIGHT])
    write(out / "results-0.jsonl", clip_line, line(first, PROMPTS[1], [RIGHT]), other, line(second, PROMPTS[2], [NONE], [RIGHT]))
    write(out / "results-1.jsonl", line(empty, PROMPTS[1]), line(first, PROMPTS[0], [LEFT], [RIGHT]))
    with open(out / "results-1.jsonl", "ab") as file:
        file.write(b'{"media": "half')
    return made


def write(path, *lines):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in lines))


def exported(jobs, out, *kinds):
    return export_results(out, jobs, [EXPORTS[kind](out / kind) for kind in kinds])


def test_every_picture_has_the_objects_of_all_its_prompts(jobs, tmp_path):
    assert exported(jobs, tmp_path / "out", "coco", "png", "yolo", "labelme", "cvat", "label-studio") == 5
    coco = COCO(str(tmp_path / "out" / "coco" / "annotations.json"))
    assert {number: category["name"] for number, category in coco.cats.items()} == {1: "dog", 2: "cat"}
    assert [image["file_name"] for image in coco.imgs.values()] == [
        "photo 1.jpg", "photo 1-2.jpg", "empty__.jpg", "clip-000000.jpg", "clip-000001.jpg"
    ]  # fmt: skip
    found = [[(item["category_id"], item["score"], coco.annToMask(item).astype(bool)) for item in coco.imgToAnns[number]] for number in coco.imgs]
    wanted = [[(1, 0.5, LEFT), (1, 0.6, RIGHT), (2, 0.5, RIGHT)], [(1, 0.6, RIGHT)], [], [(1, 0.5, LEFT), (1, 0.6, RIGHT)], [(1, 0.6, RIGHT)]]
    assert [[item[:2] for item in row] for row in found] == [[item[:2] for item in row] for row in wanted]
    for own, other in zip(chain(*found), chain(*wanted), strict=True):
        np.testing.assert_array_equal(own[2], other[2])
    assert not any("track_id" in item for item in coco.anns.values())
    with Image.open(tmp_path / "out" / "png" / "photo 1.png") as image:
        np.testing.assert_array_equal(np.asarray(image), np.where(LEFT | RIGHT, 1, 0))
    assert [line.split()[0] for line in (tmp_path / "out/yolo/labels/photo 1.txt").read_text().splitlines()] == ["0", "0", "1"]
    assert "group_id" not in (tmp_path / "out/cvat/annotations.xml").read_text() and (tmp_path / "out/labelme/photo 1-2.json").is_file()
    tasks = json.loads((tmp_path / "out/label-studio/tasks.json").read_text())
    assert [task["data"]["image"].partition("=")[2] for task in tasks][:2] == ["label-studio/images/photo%201.jpg", "label-studio/images/photo%201-2.jpg"]


def test_a_photo_that_has_changed_is_named(jobs, tmp_path):
    Image.new("RGB", (50, 40)).save(jobs[0].media)
    with pytest.raises(UserError, match="has 50x40 pixels, and its result 130x90: it was changed"):
        exported(jobs, tmp_path / "out", "coco")
    Path(jobs[0].media).unlink()
    with pytest.raises(UserError, match="does not exist"):
        exported(jobs, tmp_path / "out", "cvat")


def test_without_results_there_is_nothing_to_export(jobs, tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="holds no results of these jobs"):
        exported(jobs, tmp_path / "none", "coco")
    with pytest.raises(UserError, match="holds no results of these jobs"):
        exported([Job(jobs[3].media, PROMPTS[0])], tmp_path / "out", "coco")


@pytest.mark.parametrize("change", [{"objects": 3}, {"objects": [{}]}, {"objects": [3]}, {"frames": None}, {"frames": [0, 1]}])
def test_a_line_that_is_no_result_is_named(change, jobs, tmp_path):
    write(tmp_path / "out" / "results-1.jsonl", line(jobs[0].media, PROMPTS[0], [LEFT]) | change)
    with pytest.raises(UserError, match=r"results-1\.jsonl, the line at byte 0: it is no result"):
        exported(jobs, tmp_path / "out", "coco")
    (tmp_path / "out" / "results-1.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"results-1\.jsonl, line 1: it is no result"):
        exported(jobs, tmp_path / "out", "coco")
