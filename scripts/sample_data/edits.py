"""Edits of the sample data of segmentation sources. Each brings in something that real data sets have, or an error in an annotation.

Every edit takes the data root.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .discs import write_json

NAMES = ("The Red disc.", "an A one", "...a dog...", "AN apple", "the a an ball", "The", "A. b.", "it's the one")


def edit_json(path: Path, change: Callable[[Any], None]) -> None:
    """Change the content of a JSON file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    write_json(path, content)


def edit_pickle(path: Path, change: Callable[[Any], None]) -> None:
    """Change the content of a pickle."""
    content = pickle.loads(path.read_bytes())
    change(content)
    path.write_bytes(pickle.dumps(content, protocol=2))


def edit_image(path: Path, change: Callable[[Image.Image], Image.Image], **options: Any) -> None:
    """Change an image file; ``options`` are those of Pillow's ``save``."""
    with Image.open(path) as image:
        changed = change(image.copy())
    changed.save(path, **options)


def halve(image: Image.Image) -> Image.Image:
    """Halve an image's height and width; pixels keep their values."""
    return image.resize((image.width // 2, image.height // 2), Image.Resampling.NEAREST)


def enlarge(image: Image.Image) -> Image.Image:
    """Enlarge an image to a width of 768 pixels, which is more than the vision tower takes of a frame."""
    return image.resize((768, 768 * image.height // image.width))


def name_oddly(root: Path) -> None:
    """Give objects names with capitals, articles and full stops in all places."""

    def change(content: Any) -> None:
        names = iter(NAMES)
        for video in content["videos"].values():
            for item in video["expressions"].values():
                item["exp"] = next(names)

    edit_json(root / "mevis/train/meta_expressions.json", change)


def name_parts_oddly(root: Path) -> None:
    """Give categories of parts names with capitals, articles, underscores and full stops."""

    def change(content: Any) -> None:
        for category, name in zip(content["categories"], ("The disc_(a):Upper rim.", " an Arc", "A disc:the rim_(b)"), strict=True):
            category["name"] = name

    edit_json(root / "lisa/vlpart/pascal_part/train.json", change)


def name_nothing(root: Path) -> None:
    """Give an object a name without words."""
    edit_json(root / "lvvis/meta_expressions.json", lambda content: content["videos"]["first"]["expressions"]["0"].update(exp="..."))


def name_three(root: Path) -> None:
    """Give a category the name of a part of a part."""
    edit_json(root / "lisa/vlpart/pascal_part/train.json", lambda content: content["categories"][0].update(name="disc:rim:left"))


def turn_photo(root: Path) -> None:
    """Mark a photo as stored turned, in its EXIF data."""
    exif = Image.Exif()
    exif[0x0112] = 6
    edit_image(root / "lisa/refer_seg/images/mscoco/images/train2014/photo_0.jpg", lambda image: image, exif=exif)


def enlarge_photo(root: Path) -> None:
    """Enlarge a photo, so that its polygons are for a smaller image."""
    edit_image(root / "lisa/refer_seg/images/mscoco/images/train2014/photo_1.jpg", enlarge)


def scale_polygons(root: Path) -> None:
    """Give each object two polygons, drawn in an image of another size."""

    def change(content: Any) -> None:
        for image in content["images"]:
            image.update(height=3 * image["height"], width=2 * image["width"])
        for item in content["annotations"]:
            own = np.array(item["segmentation"][0]).reshape(-1, 2) * (2, 3)
            item["segmentation"] = [own.ravel().tolist(), np.add(own, (11.5, -7)).ravel().tolist()]

    edit_json(root / "lisa/refer_seg/refcocog/instances.json", change)


def silence_objects(root: Path) -> None:
    """Remove the sentences of all objects of a photo, and of one object of another photo."""

    def change(refs: Any) -> None:
        for ref in refs:
            if ref["image_id"] == 0 or ref["ref_id"] == 11:
                ref["sentences"] = []

    edit_pickle(root / "lisa/refer_seg/refclef/refs(unc).p", change)


def ignore_all_classes(root: Path) -> None:
    """Make all classes of a photo ones to be ignored."""
    edit_image(root / "lisa/ade20k/annotations/training/photo_1.png", lambda labels: labels.point(lambda value: 255 if value else 0))


def halve_classes(root: Path) -> None:
    """Halve a label image of classes, so that it is smaller than its photo."""
    edit_image(root / "lisa/ade20k/annotations/training/photo_1.png", halve)


def add_class(root: Path) -> None:
    """Put a class without a name into a label image."""
    edit_image(root / "lisa/cocostuff/train2017/photo_1.png", lambda labels: labels.point(lambda value: 200 if value == 61 else value))


def halve_labels(root: Path) -> None:
    """Halve one label image of a clip, so that it is smaller than its frame."""
    edit_image(root / "groundmore/annotations/clip_a/masks/frame_0.png", halve)


def ask_for_absent(root: Path) -> None:
    """Make a question ask about an object that no label image has."""
    edit_json(root / "groundmore/trainval_v2.json", lambda content: content["videos"]["clip_a"]["questions"]["0"].update(obj_id="7"))


def shorten_masks(root: Path) -> None:
    """Remove an object's mask of the last frame, so that there are fewer masks than frames."""
    edit_json(root / "revos/mask_dict.json", lambda masks: masks["0"].pop())


def hide_object(root: Path) -> None:
    """Remove an object's masks of all frames."""
    edit_json(root / "mevis/train/mask_dict.json", lambda masks: masks.update({"0": [None] * len(masks["0"])}))


def hide_davis(root: Path) -> None:
    """Remove an expression's masks of all frames, which Ref-DAVIS17's source accepts."""
    edit_pickle(root / "ref_davis17/train/mask_dict.pkl", lambda masks: masks.update({"0": [None] * len(masks["0"])}))


def hide_youtube(root: Path) -> None:
    """Remove an expression's masks of all frames, which Ref-YouTube-VOS's source refuses."""
    edit_pickle(root / "ref_youtube_vos/mask_dict.pkl", lambda masks: masks.update({"0": [None] * len(masks["0"])}))


def drop_masks(root: Path) -> None:
    """Remove an expression's masks from the file of masks."""
    edit_pickle(root / "ref_youtube_vos/mask_dict.pkl", lambda masks: masks.pop("3"))


def halve_frame(root: Path) -> None:
    """Halve a frame, so that it is smaller than the others of its clip."""
    edit_image(root / "mevis/train/JPEGImages/first/00000.jpg", halve)


def draw_shapes(root: Path) -> None:
    """Write polygons that cross themselves and each other, lie partly outside the image, and have fractions."""

    def change(content: Any) -> None:
        shape = {"image_name": "photo_0.jpg", "shape_type": "polygon"}
        star = [[48 + 40 * np.sin(4 * np.pi * i / 5), 30 - 40 * np.cos(4 * np.pi * i / 5)] for i in range(5)]
        cut = [[-8.7, 20.2], [70.9, 26.5], [64.1, 80.6]]
        bow = [[90.5, 3.5], [60.5, 21.9], [95.2, 21.1], [61.3, 2.2]]
        content["shapes"] = [shape | {"label": label, "points": points} for label, points in (("target", bow), ("ignore", cut), ("target", star))]

    edit_json(root / "lisa/reason_seg/ReasonSeg/train/photo_0.json", change)


def write_on_windows(root: Path) -> None:
    """Write a sentence that is not in UTF-8, as in a few files of ReasonSeg."""
    path = root / "lisa/reason_seg/ReasonSeg/train/photo_0.json"
    content = json.loads(path.read_text()) | {"text": ["the caf\u00e9"]}
    path.write_bytes(json.dumps(content, ensure_ascii=False).encode("cp1252"))


def mistake_photo(root: Path) -> None:
    """Make a polygon belong to another photo."""
    edit_json(root / "lisa/reason_seg/ReasonSeg/train/photo_0.json", lambda content: content["shapes"][0].update(image_name="photo_1.jpg"))


def explain_absent(root: Path) -> None:
    """Make an explanation refer to a photo that is not there."""
    edit_json(root / "lisa/reason_seg/ReasonSeg/explanatory/train.json", lambda items: items[0].update(image="photo_9.jpg"))


def describe_absent(root: Path) -> None:
    """Add a description of an object that has no masks."""
    absent = {"video_id": "sav_000001", "obj_id": 5, "formated": "A disc."}
    edit_json(root / "ref_sav/Ref-SAV-Min-Ratio-0.3.json", lambda videos: videos["sav_000001"]["objects"].update({"5": absent}))


def add_stray(root: Path) -> None:
    """Add a part in a photo that the file does not list."""
    path = root / "lisa/vlpart/paco/annotations/paco_lvis_v1_train.json"
    edit_json(path, lambda content: content["annotations"].append(content["annotations"][0] | {"id": 99, "image_id": 99}))


def enlarge_frames(root: Path) -> None:
    """Enlarge the frames of all videos, and leave one video only two annotated frames."""
    for path in (root / "vicas/video_frames").rglob("*.jpg"):
        edit_image(path, enlarge)

    def change(content: Any) -> None:
        del content["000002"]["segmentations"][2:]

    edit_json(root / "vicas/annotations/annotations_wo_masks_v1.0.json", change)


def split_vicas(root: Path) -> None:
    """Write a file of annotations for each video, with the masks inside."""
    path = root / "vicas/annotations/annotations_wo_masks_v1.0.json"
    content = json.loads(path.read_text())
    path.unlink()
    for video, item in content.items():
        files = [json.loads((root / f"vicas/masks/{video}/{i}.json").read_text()) for i in range(2)]
        for f, step in enumerate(item["segmentations"]):
            step |= {"track_ids": [3, 1, 2], "mask_rles": [files[1][f][1], files[0][f][0], files[1][f][0]]}
        write_json(path / f"{video}.json", item)


EDITS: tuple[tuple[str, Callable[[Path], None]], ...] = (
    ("mevis", name_oddly),
    ("mevis", hide_object),
    ("mevis", halve_frame),
    ("lvvis", name_nothing),
    ("revos", shorten_masks),
    ("ref_davis17", hide_davis),
    ("ref_youtube_vos", hide_youtube),
    ("ref_youtube_vos", drop_masks),
    ("ref_sav", describe_absent),
    ("groundmore", halve_labels),
    ("groundmore", ask_for_absent),
    ("vicas", split_vicas),
    ("vicas", enlarge_frames),
    ("reason_seg", draw_shapes),
    ("reason_seg", write_on_windows),
    ("reason_seg", mistake_photo),
    ("reason_seg", explain_absent),
    ("ade20k", ignore_all_classes),
    ("ade20k", halve_classes),
    ("cocostuff", add_class),
    ("paco_lvis", add_stray),
    ("pascal_part", name_parts_oddly),
    ("pascal_part", name_three),
    ("refcoco", turn_photo),
    ("refcoco+", enlarge_photo),
    ("refcocog", scale_polygons),
    ("refclef", silence_objects),
)
"""All edits, each with the source whose data it changes."""
