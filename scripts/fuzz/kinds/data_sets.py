"""Cases of data sets, with a user's own images in every form and in the published layouts, which are checked, and some of them packed."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from ..case import Case, Kind
from ..odd_files import change_folder, copy

ANNOTATIONS = ("*.json", "*.json", "*.csv", "*.txt", "*.p", "*.pkl", "*.png", "*.jpg")
OWN = ("numbers", "files", "tabs", "texts", "polygons", "lengths")


def prepare(folder: Path) -> None:
    """Write images of discs in every published layout, and as a user's own images."""
    from make_sample_data import WRITERS

    for name, write in WRITERS.items():
        write(folder / name)
    for form in OWN:
        _write_own(folder / form, form)


def make(seeds: Path, folder: Path, rng: Random) -> Case:
    """Change a data set."""
    form = rng.choice(OWN) if rng.random() < 0.5 else rng.choice(sorted(p.name for p in seeds.iterdir() if p.name not in OWN))
    copy(seeds / form, folder / "in")
    note = change_folder(folder / "in", rng, ANNOTATIONS)
    source = ("in/annotations.json" if form in ("polygons", "lengths") else "in") if form in OWN else form
    if rng.random() < 0.15:
        return Case(["data", "pack", source, "--root", "in", "--out", "out"], f"{form}: {note}", ("out",))
    return Case(["data", "check", source, "--root", "in", "--samples", "4"], f"{form}: {note}")


def _write_own(folder: Path, form: str) -> None:
    """Write two images of a disc and a bar, with masks, in one of the forms that docs/data.md describes."""
    import numpy as np
    from PIL import Image
    from pycocotools import mask as coco

    (folder / "images").mkdir(parents=True)
    rows, records, texts = [], [], {}
    for number in (1, 2):
        y, x = np.mgrid[:48, :64]
        labels = ((y - 20) ** 2 + (x - 10 * number - 10) ** 2 < 100).astype(np.uint8)
        labels[38:44, 4:60] = 2
        Image.fromarray(np.stack([labels * 100] * 3, -1)).save(folder / "images" / f"p{number}.png")
        rows += [(f"p{number}", "the disc", "disc" if form == "files" else "1"), (f"p{number}", "the bar", "bar" if form == "files" else "2")]
        texts[f"p{number}"] = {"1": "the disc", "2": ["the bar", "the long thing"]}
        for value, name in ((1, "disc"), (2, "bar")):
            mask = labels == value
            if form in ("numbers", "tabs", "texts"):
                (folder / "masks").mkdir(exist_ok=True)
                Image.fromarray(labels).save(folder / "masks" / f"p{number}.png")
            elif form == "files":
                (folder / "masks" / f"p{number}").mkdir(parents=True, exist_ok=True)
                Image.fromarray(255 * mask.astype(np.uint8)).save(folder / "masks" / f"p{number}" / f"{name}.png")
            packed = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
            lengths = {"size": [48, 64], "counts": packed["counts"].decode()}
            polygons = [[10.0 * number, 10, 10 * number + 20, 10, 10 * number + 20, 30, 10 * number, 30]]
            words = {1: {"sentences": [f"the {name}"]}, 2: {"question": "What is <region>?", "answer": f"A {name}."}}[value]
            records.append({"image_id": number, "category_id": value, "segmentation": polygons if form == "polygons" else lengths, **words})
    if form in ("numbers", "files"):
        (folder / "sentences.csv").write_text("".join(f"{','.join(row)}\n" for row in rows))
    elif form == "tabs":
        (folder / "sentences.txt").write_text("".join(f"{chr(9).join(row)}\n" for row in rows))
    elif form == "texts":
        (folder / "sentences.json").write_text(json.dumps(texts))
    else:
        images = [{"id": number, "file_name": f"p{number}.png", "height": 48, "width": 64} for number in (1, 2)]
        categories = [{"id": 1, "name": "disc"}, {"id": 2, "name": "bar"}]
        (folder / "annotations.json").write_text(json.dumps({"images": images, "categories": categories, "annotations": records}))


KIND = Kind("annotations", 700, prepare, make)
