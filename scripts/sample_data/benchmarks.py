"""Small data of every benchmark in its own layout: drawn scenes of shapes, as the small model knows them, with sizes and lengths that a seed decides."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unipixel_jax.data.synthetic.language import full_name
from unipixel_jax.data.synthetic.scene import draw_scene
from unipixel_jax.eval.layouts import MVBENCH

from .discs import run_length, write_folder, write_json, write_photo, write_video

VIDEOS = 3
"""Videos of a benchmark, or photos of a split."""

KINDS = ("Causal", "Sequential", "Counterfactual", "Descriptive")

THINGS = 3
"""Things of each scene that are asked about."""


def draw(rng: np.random.Generator, frames: int) -> tuple[list[Image.Image], NDArray[np.bool_], list[str]]:
    """Draw a clip, cut to a random size, that shows three things on all frames.

    Returns:
        The frames, the things' masks [O, F, H, W] bool, and their names.
    """
    while True:
        scene = draw_scene(rng, frames)
        side = scene.frames.shape[1]
        height, width = (int(rng.integers(side * 3 // 8, side // 2 + 1)) * 2 for _ in range(2))  # videos have even sides
        masks = scene.masks[:, :, :height, :width]
        shown = np.flatnonzero(masks.any(axis=(2, 3)).all(axis=1))[:THINGS]
        if len(shown) == THINGS:
            return [Image.fromarray(frame[:height, :width]) for frame in scene.frames], masks[shown], [full_name(scene, int(i)) for i in shown]


def write_videos(root: Path, seed: int) -> None:
    """Write ReVOS, MeViS, Ref-YouTube-VOS, Ref-DAVIS17 and Ref-SAV."""
    rng = np.random.default_rng([seed, 1])
    for split in ("valid_u", "valid"):
        videos, masks = _clips(root / f"mevis/{split}/JPEGImages", rng)
        write_json(root / f"mevis/{split}/meta_expressions.json", {"videos": videos})
        if split == "valid_u":
            write_json(root / f"mevis/{split}/mask_dict.json", masks)
    videos, masks = _clips(root / "ref_sav/valid/videos", rng, text="The {} moves.")
    write_json(root / "ref_sav/valid/meta_expressions_valid.json", {"videos": videos})
    write_json(root / "ref_sav/valid/mask_dict.json", masks)
    videos, masks = _clips(root / "ref_davis17/DAVIS/JPEGImages/480p", rng, names=("zebra", "bear", "camel"), several=False)
    write_json(root / "ref_davis17/meta_expressions/valid/meta_expressions.json", {"videos": videos})
    order = [(video, number) for video in sorted(videos) for number in sorted(videos[video]["expressions"])]
    counted = {str(i): masks[str(videos[video]["expressions"][number]["anno_id"][0])] for i, (video, number) in enumerate(order)}
    (root / "ref_davis17/valid").mkdir(parents=True, exist_ok=True)
    (root / "ref_davis17/valid/mask_dict.pkl").write_bytes(pickle.dumps(counted))
    videos, _ = _clips(root / "ref_youtube_vos/valid/JPEGImages", rng)
    write_json(root / "ref_youtube_vos/meta_expressions/valid/meta_expressions.json", {"videos": videos})
    _write_revos(root, rng)


def write_groundmore(root: Path, seed: int) -> None:
    """Write clips with label images on two of three frames."""
    rng = np.random.default_rng([seed, 2])
    videos = {}
    for number in range(VIDEOS):
        name = f"video{number}_{10 + number:02d}05_{10 + number:02d}09"
        frames, masks, names = draw(rng, int(rng.integers(15, 30)))
        questions = {
            str(i): {
                "question": f"where is the {names[i % 3]}" + "?" * (i % 2),
                "answer": "that one",
                "obj_id": str(i % 3 + 1),
                "q_type": KINDS[(number + i) % 4],
                "action_start": f"{10 + number}:{5 + i % 2:02d}",
                "action_end": f"{10 + number}:{8 + i % 2:02d}",
            }
            for i in range(4)
        }
        videos[name] = {"questions": questions}
        folder = root / "groundmore/annotations" / name
        pattern = "frame_{:06d}" if number % 2 == 0 else "{:07d}"
        write_folder(folder / "images", frames, pattern + ".jpg")
        labels = (np.arange(1, 4).reshape(3, 1, 1, 1) * masks).max(axis=0).astype(np.uint8)
        for f in range(len(frames)):
            if f % 3:
                write_photo(folder / "masks" / f"{pattern.format(f)}.png", Image.fromarray(labels[f]))
    write_json(root / "groundmore/test_v2.json", {"videos": videos})


def write_photos(root: Path, seed: int) -> None:
    """Write RefCOCO, RefCOCO+, RefCOCOg and ReasonSeg, whose second photo has a part that is to be ignored."""
    rng = np.random.default_rng([seed, 3])
    for source, version in (("refcoco", "unc"), ("refcoco+", "unc"), ("refcocog", "umd")):
        content: dict[str, list[dict[str, Any]]] = {"categories": [{"id": 1, "name": "shape"}], "images": [], "annotations": []}
        refs: list[dict[str, Any]] = []
        for split in ("val", "test") if source == "refcocog" else ("val", "testA", "testB"):
            for _ in range(VIDEOS):
                number = len(content["images"])
                frames, masks, names = draw(rng, 1)
                name = f"COCO_{source}_{number:04d}.jpg"
                write_photo(root / "lisa/refer_seg/images/mscoco/images/train2014" / name, frames[0])
                content["images"].append({"id": number, "file_name": name, "height": frames[0].height, "width": frames[0].width})
                for thing in range(2):
                    key, corners = 10 * number + thing, outline(masks[thing, 0])
                    left, top = (min(corner[axis] for corner in corners) for axis in (0, 1))
                    box = [left, top, *(max(corner[axis] for corner in corners) - start for axis, start in ((0, left), (1, top)))]
                    flat = [value for corner in corners for value in corner]
                    content["annotations"].append({"id": key, "image_id": number, "category_id": 1, "bbox": box, "segmentation": [flat]})
                    sentences = [{"sent_id": 10 * key + i, "sent": text} for i, text in enumerate((names[thing], f"the {names[thing]}"))]
                    refs.append({"ref_id": key, "ann_id": key, "image_id": number, "category_id": 1, "split": split, "sentences": sentences})
        folder = root / "lisa/refer_seg" / source
        write_json(folder / "instances.json", content)
        (folder / f"refs({version}).p").write_bytes(pickle.dumps(refs, protocol=2))
    for split in ("val", "test"):
        for number in range(VIDEOS):
            frames, masks, names = draw(rng, 1)
            shape = {"image_name": f"photo_{number}.jpg", "shape_type": "polygon"}
            shapes = [shape | {"label": "target", "points": outline(masks[2, 0])}]
            if number == 1:
                shapes.append(shape | {"label": "ignore", "points": outline(masks[1, 0])})
            texts = [f"Where can I find the {names[2]}?"] if number else [f"the {names[2]}"]
            folder = root / "lisa/reason_seg/ReasonSeg" / split
            write_photo(folder / f"photo_{number}.jpg", frames[0])
            write_json(folder / f"photo_{number}.json", {"text": texts, "is_sentence": bool(number), "shapes": shapes})


def write_regions(root: Path, seed: int) -> None:
    """Write VideoRefer-Bench-Q, on which PixelQA is asked too, and VideoRefer-Bench-D."""
    rng = np.random.default_rng([seed, 4])
    folder = root / "videorefer/VideoRefer-Bench"
    questions, descriptions = [], []
    for number in range(VIDEOS):
        frames, masks, names = draw(rng, 24)
        write_video(folder / f"videos/clip_{number}.mp4", frames)
        write_video(folder / f"videos/Panda-70M-part/clip_{number}.mp4", frames)
        every = range(0, len(frames), 1 + number)
        marked = [{str(f): {"segmentation": run_length(masks[thing, f])} for f in every} for thing in range(2)]
        middle = str(list(every)[len(every) // 2])
        common = {"video": f"clip_{number}.mp4", "frame_idx": middle}
        options = [f"({letter}) a {name}" for letter, name in zip("ABC", names, strict=True)]
        one = {"Question": "What is <object0><region>?", "options": options, "Answer": "(A)"}
        two = {"Question": "Is <object0><region> larger than <object1><region>?", "options": ["(A) yes", "(B) no"], "Answer": "(B)"}
        questions.append({**common, **one, "annotation": marked[:1], "type": "Basic Questions"})
        questions.append({**common, **two, "annotation": marked, "type": "Relationship Questions"})
        descriptions.append({**common, "caption": f"A {names[1]} that moves.", "annotation": marked[1:]})
    write_json(folder / "VideoRefer-Bench-Q.json", questions)
    write_json(folder / "VideoRefer-Bench-D.json", descriptions)


def write_mvbench(root: Path, seed: int) -> None:
    """Write a question for each of MVBench's twenty tasks. One shows a folder of frames, the others a video."""
    rng = np.random.default_rng([seed, 5])
    for number, (task, place) in enumerate(MVBENCH.values()):
        frames, _, _ = draw(rng, 40 if number == 0 else 24)
        name = "show_clip" if number == 0 else f"{task}.mp4"
        if number == 0:
            for f, frame in enumerate(frames, start=1):
                write_photo(root / "mvbench/video" / place / name / f"{f:05d}.jpg", frame)
        else:
            write_video(root / "mvbench/video" / place / name, frames)
        options = ["a shape", "a dog", "nothing"]
        question = {"video": name, "question": "what moves?", "candidates": options, "answer": options[number % 3]}
        write_json(root / f"mvbench/json/{task}.json", [question])


def write_videomme(root: Path, seed: int) -> None:
    """Write the table of Video-MME, a question for each length of a video."""
    import pyarrow
    from pyarrow import parquet

    rng = np.random.default_rng([seed, 6])
    rows = []
    for number, duration in enumerate(("short", "medium", "long")):
        frames, _, _ = draw(rng, 24)
        write_video(root / f"videomme/videos_3fps_480_noaudio/clip_{number}.mp4", frames)
        options = [f"{letter}. {text}" for letter, text in zip("ABCD", ("A shape.", "A dog.", "A car.", "Nothing."), strict=True)]
        rows.append({"videoID": f"clip_{number}", "duration": duration, "question": "What moves?", "options": options, "answer": "ABC"[number]})
    parquet.write_table(pyarrow.Table.from_pylist(rows), root / "videomme/test-00000-of-00001.parquet")


def outline(mask: NDArray[np.bool_]) -> list[list[float]]:
    """The corners [x, y] of a polygon around a mask [H, W]: down along the first pixels of its rows, and up along the last ones."""
    rows = np.flatnonzero(mask.any(axis=1))
    left, right = mask[rows].argmax(axis=1), mask.shape[1] - 1 - mask[rows, ::-1].argmax(axis=1)
    return [*zip(left.tolist(), rows.tolist(), strict=True), *zip(right[::-1].tolist(), rows[::-1].tolist(), strict=True)]


def _write_revos(root: Path, rng: np.random.Generator) -> None:
    videos, masks = _clips(root / "revos", rng, names=("part0/clip", "part0/other", "part1/clip"))
    foreground = {}
    for video, meta in videos.items():
        for number, item in meta["expressions"].items():
            item["type_id"] = int(number) % 2
            item["exp"] += "?" * (int(number) % 2)
        own = [masks[str(item["anno_id"][0])] for item in meta["expressions"].values()]
        shown = [np.logical_or.reduce([_decoded(track[f]) for track in own if track[f]]) for f in range(len(meta["frames"]))]
        foreground[video] = {"masks_rle": [run_length(mask) for mask in shown]}
    write_json(root / "revos/meta_expressions_valid_.json", {"videos": videos})
    write_json(root / "revos/mask_dict.json", masks)
    write_json(root / "revos/mask_dict_foreground.json", foreground)


def _clips(
    folder: Path, rng: np.random.Generator, *, names: tuple[str, ...] = ("one", "two", "three"), text: str = "the {}", several: bool = True
) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Write clips in which the truth lacks the last thing on the first frame; return their annotations and masks."""
    videos: dict[str, Any] = {}
    masks: dict[str, list[Any]] = {}
    for name in names:
        frames, things, found = draw(rng, int(rng.integers(2, 8)))
        things[2, 0] = False
        write_folder(folder / name, frames)
        expressions = {}
        for thing in range(THINGS):
            numbers = [len(masks)]
            masks[str(len(masks))] = [run_length(mask) if mask.any() else None for mask in things[thing]]
            if several and thing == 1:
                numbers.append(int(numbers[0]) - 1)
            expressions[str(thing)] = {"exp": text.format(found[thing]), "obj_id": list(range(len(numbers))), "anno_id": numbers}
        videos[name] = {"frames": [f"{f:05d}" for f in range(len(frames))], "expressions": expressions}
    return videos, masks


def _decoded(region: dict[str, Any]) -> NDArray[np.bool_]:
    from pycocotools import mask as coco

    return coco.decode(region).astype(bool)


WRITERS: tuple[Callable[[Path, int], None], ...] = (write_videos, write_groundmore, write_photos, write_regions, write_mvbench, write_videomme)


def write_benchmarks(root: Path, seed: int = 0) -> None:
    """Write the data of every benchmark below a folder."""
    for write in WRITERS:
        write(root, seed)
