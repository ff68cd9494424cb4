#!/usr/bin/env python3
"""Draw the images of docs/tiny_model.md: scripts/draw_tiny_model.py CURRICULUM_RUN RUN

The curves are those of the curriculum's stages and of the run after them (their folders). The sheet shows the first questions of
`unipixel-jax eval shapes` about masks, good and bad, with what the model that ships with the package answers. Needs the extra plot.
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
from unipixel_jax.synthetic.recipe import CURRICULUM

DOCS = Path(__file__).parent.parent / "docs"
SHOWN = 12
PANELS = {
    "vision": ("right, of what tokens show", ("token_size", "token_colour", "token_shape", "thing_shape", "pointed_row")),
    "localization segmentation tracking all_together": ("dice loss", ("dice",)),
    "language occlusion relations comparison all_together": ("language loss, a token", ("language",)),
    "language occlusion relations comparison": ("error of the codes before <|seg|>", ("code",)),
}
"""Folders of stages, one after the other, with the title of their panel and the metrics that it shows."""


def curves(stages: Path, run: Path, path: Path) -> None:
    """Numbers of the training scenes over the scenes seen."""
    sources = {stage.name: (stages / stage.name, getattr(CURRICULUM, stage.name).batch_size) for stage in fields(CURRICULUM)}
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
