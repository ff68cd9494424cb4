#!/usr/bin/env python3
"""Draw the pictures of docs/tiny_model.md: scripts/draw_tiny_model.py RUN [RUN ...]

The curves are those of the training runs (their folders, in order); the sheet shows the first questions of `unipixel-jax eval shapes` about masks, good and
bad, with what the model that ships with the package answers. Needs the extra plot.
"""

import json
import sys
from itertools import islice
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from unipixel_jax.eval.shapes import judge
from unipixel_jax.infer.loading import EMBEDDED
from unipixel_jax.infer.predictor import UniPixel

DOCS = Path(__file__).parent.parent / "docs"
CURVES = {"language": "language loss, a token", "dice": "dice loss", "seg_rate": "share of <|seg|> said"}
SHOWN = 12


def curves(runs: list[Path], path: Path) -> None:
    """Losses of the training scenes, run after run, over the samples seen."""
    figure = Figure(figsize=(12, 3), layout="constrained")
    for axes, (name, label) in zip(figure.subplots(1, len(CURVES)), CURVES.items(), strict=True):
        before = 0
        for number, run in enumerate(runs):
            lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
            size = json.loads((run / "config.json").read_text(encoding="utf-8"))["batch_size"]
            points = [(before + line["step"] * size, line[name]) for line in lines if name in line and (name != "dice" or line["dice"] > 0)]
            before += max(line["step"] for line in lines) * size
            if points:
                axes.plot(*zip(*points, strict=True), label=run.name, color=f"C{number}")
        axes.set(xlabel="samples", title=label)
        axes.set_ylim(0, 1.05)
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=100)


def sheet(path: Path) -> None:
    """The first questions in words about pictures, in the order in which they come."""
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
    """Draw both."""
    if len(sys.argv) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    curves([Path(run) for run in sys.argv[1:]], DOCS / "tiny_curves.png")
    sheet(DOCS / "tiny_sheet.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
