#!/usr/bin/env python3
"""Draw the images of docs/tiny_model.md: scripts/draw_tiny_model.py LESSONS RUN

LESSONS is the folder of the curriculum's stages and RUN that of the run after them, whose metrics become curves. The sheet shows the first questions of
`unipixel-jax eval shapes` about masks, with the answers of the model that ships with the package, good and bad. Needs the extra plot.
"""

import json
import sys
from dataclasses import fields
from itertools import islice
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from unipixel_jax.infer.loading import EMBEDDED
from unipixel_jax.infer.predictor import UniPixel
from unipixel_jax.synthetic.evaluation import judge
from unipixel_jax.synthetic.recipe import COURSE

DOCS = Path(__file__).parent.parent / "docs"
SHOWN = 12
PANELS = {
    "sight": ("right, of what tokens show", ("token_size", "token_colour", "token_shape", "thing_shape", "pointed_row")),
    "places segmenting tracking all_together": ("dice loss", ("dice",)),
    "telling behind relations comparing all_together": ("language loss, a token", ("language",)),
    "telling behind relations comparing": ("error of the codes before <|seg|>", ("code",)),
}
"""The curves' panels: by stages of the curriculum, one after the other, the panel's title and the metrics that it shows."""


def curves(lessons: Path, run: Path, path: Path) -> None:
    """Draw metrics of the training scenes over the number of scenes seen."""
    sources = {lesson.name: (lessons / lesson.name, getattr(COURSE, lesson.name).batch_size) for lesson in fields(COURSE)}
    sources["all_together"] = (run, json.loads((run / "config.json").read_text(encoding="utf-8"))["batch_size"])
    figure = Figure(figsize=(14, 3), layout="constrained")
    for axes, (folders, (title, names)) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        before = 0
        for folder in folders.split():
            where, size = sources[folder]
            lines = [json.loads(line) for line in (where / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
            for name in names:
                points = [(before + line["step"] * size, line[name]) for line in lines if line.get(name)]
                axes.plot(*zip(*points, strict=True), label=name if len(names) > 1 else folder)
            before += max(line["step"] for line in lines) * size
        axes.set(xlabel="scenes", title=title)
        axes.set_ylim(0, 1.05)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    figure.savefig(path, dpi=100)


def sheet(path: Path) -> None:
    """Draw the first questions in words about images, in their order, with the model's answers and masks."""
    model = UniPixel.from_pretrained(EMBEDDED, "float32")
    found = list(islice((one for one in judge(model, 10 * SHOWN, 0) if one.measure == "picture_iou"), SHOWN))
    figure = Figure(figsize=(13, 8.2), layout="constrained")
    for axes, one in zip(figure.subplots(3, SHOWN // 3).flat, found, strict=True):
        axes.imshow(one.scene.frames[0])
        for item in one.prediction.objects:
            overlay = np.zeros((*item.masks.shape[1:], 4))
            overlay[item.masks[0]] = (1, 1, 1, 0.75)
            axes.imshow(overlay)
            axes.contour(item.masks[0], [0.5], colors="black", linewidths=1)
        axes.set_title(f"{one.question}\n{one.prediction.text}\nIoU {one.score:.2f}", fontsize=7)
        axes.axis("off")
    figure.savefig(path, dpi=90)


def main() -> int:
    """Draw curves and sheet; return the exit status."""
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    curves(Path(sys.argv[1]), Path(sys.argv[2]), DOCS / "tiny_curves.png")
    sheet(DOCS / "tiny_sheet.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
