"""The scores of runs beside the published ones: as a table, as Markdown, as a plot, and as a page with the worst cases first."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unipixel_jax.core.files import read_json_object, replacing
from unipixel_jax.errors import UserError, needing
from unipixel_jax.eval.benchmarks import BENCHMARKS
from unipixel_jax.eval.layouts import LAYOUTS, list_expressions, list_questions
from unipixel_jax.eval.videos import read_prediction
from unipixel_jax.infer.visualize import draw_objects
from unipixel_jax.processing.images import open_image, to_rgb

WORST = 4
"""Cases of each benchmark on the page."""

SHOWN = 3
"""Frames of each case."""


@dataclass(frozen=True)
class Row:
    """A line of the report.

    Attributes:
        title: the benchmark with its split or way of marking.
        measure: the score's name.
        score: the score, in the unit of the published ones; None where there is none yet.
        corrected: the corrected one, where the reference's scorer slips.
        published: the published scores of 3B and 7B; None where none are.
        samples: how many samples there are.
        failed: how many of them failed.
        model: the model's name.
    """

    title: str
    measure: str
    score: float | None
    corrected: float | None
    published: tuple[float, float] | None
    samples: int
    failed: int
    model: str


@dataclass(frozen=True)
class Case:
    """A sample that went badly: its name, its scores, what was asked and answered, and a PNG, where there is one, as text in base 64."""

    name: str
    score: str
    words: str
    picture: str


def find_results(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """The ``results.json`` in folders, or in the folders within them, in the order of the benchmarks.

    Raises:
        UserError: a folder has none, or one is broken.
    """
    found = []
    for folder in folders:
        paths = [folder / "results.json"] if (folder / "results.json").is_file() else sorted(folder.glob("*_results/results.json"))
        if not paths:
            raise UserError(f"{folder} has no results.json, nor has any folder *_results in it: give a folder that `unipixel-jax eval` wrote to with --out")
        for path in paths:
            content = read_json_object(path, "expected what `unipixel-jax eval` wrote")
            if content.get("benchmark") not in BENCHMARKS or "scores" not in content or not isinstance(content.get("settings"), dict):
                raise UserError(f"{path} is not a benchmark's results: expected what `unipixel-jax eval` wrote")
            found.append(content)
    order = list(BENCHMARKS)
    return sorted(found, key=lambda result: order.index(result["benchmark"]))


def row_of(result: Mapping[str, Any]) -> Row:
    """The line of one ``results.json``."""
    benchmark = BENCHMARKS[result["benchmark"]]
    settings = result["settings"]
    part = result["split"]
    if "{single}" in benchmark.folder:
        part = "single" if settings.get("single_frame") else "multi"
    if "{prompt}" in benchmark.folder:
        part = settings.get("prompt_type", part)
    published = part
    if result.get("limit"):
        part = f"{part}, first {result['limit']}"
    corrected = result.get("corrected")
    return Row(
        title=f"{benchmark.title} ({part})",
        measure=" ".join(benchmark.headline),
        score=_score(result["scores"], benchmark.headline, benchmark.unit),
        corrected=_score(corrected["scores"], benchmark.headline, benchmark.unit) if corrected else None,
        published=benchmark.published.get(published),
        samples=int(result.get("samples", 0)),
        failed=len(result.get("failures") or ()),
        model=str(result.get("model", "")),
    )


def print_table(results: Sequence[Mapping[str, Any]]) -> None:
    """Print the lines as a table."""
    lines = [_HEAD, *(_cells(row_of(result)) for result in results)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEAD))]
    for line in lines:
        print("  ".join(cell.ljust(width) if column < 2 else cell.rjust(width) for column, (cell, width) in enumerate(zip(line, widths, strict=True))).rstrip())


def write_report(results: Sequence[Mapping[str, Any]], out: Path) -> list[Path]:
    """Write ``report.md``, ``report.png`` and ``report.html`` into a folder, and return their paths.

    Raises:
        UserError: a file cannot be written, or matplotlib is not installed.
    """
    rows = [row_of(result) for result in results]
    paths = [out / f"report.{ending}" for ending in ("md", "png", "html")]
    with replacing(paths[0]) as aside:
        aside.write_text(_markdown(rows), encoding="utf-8")
    with replacing(paths[1]) as aside:
        _plot(rows, aside)
    with replacing(paths[2]) as aside:
        aside.write_text(_page(rows, results, paths[1]), encoding="utf-8")
    return paths


_HEAD = ("benchmark", "measure", "score", "corrected", "3B", "7B", "samples", "failed", "model")


def _cells(row: Row) -> tuple[str, ...]:
    numbers = [row.score, row.corrected, *(row.published or (None, None))]
    return row.title, row.measure, *("-" if n is None else f"{n:.2f}" for n in numbers), str(row.samples), str(row.failed), row.model


def _score(scores: Any, path: Sequence[str], unit: float) -> float | None:
    for name in path:
        scores = scores.get(name) if isinstance(scores, Mapping) else None
    return None if scores is None else unit * float(scores)


def _markdown(rows: Sequence[Row]) -> str:
    lines = [_HEAD, tuple("---" if column < 2 else "--:" for column in range(len(_HEAD))), *map(_cells, rows)]
    note = "3B and 7B are the published scores (README.md of PolyU-ChenLab/UniPixel)."
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines) + f"\n\n{note}\n"


def _plot(rows: Sequence[Row], path: Path) -> None:
    """Draw a group of bars for each line: ours and the published ones."""
    with needing("plot", "a plot"):
        from matplotlib.figure import Figure
    figure = Figure(figsize=(9, 1.2 + 0.5 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for number, (label, color) in enumerate((("this run", "#0072b2"), ("published 3B", "#e69f00"), ("published 7B", "#56b4e9"))):
        values = [row.score if number == 0 else row.published[number - 1] if row.published else None for row in rows]
        places = [place + 0.27 * (number - 1) for place in range(len(rows))]
        bars = axes.barh(places, [value or 0.0 for value in values], 0.25, label=label, color=color)
        axes.bar_label(bars, ["" if value is None else f"{value:.1f}" for value in values], fontsize=7, padding=2)
    axes.set(yticks=range(len(rows)), yticklabels=[f"{row.title}, {row.measure}" for row in rows])
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=3)
    figure.savefig(path, dpi=120)


def _page(rows: Sequence[Row], results: Sequence[Mapping[str, Any]], plot: Path) -> str:
    import jinja2

    picture = base64.b64encode(plot.read_bytes()).decode("ascii")
    parts = [(row, result, worst_cases(result)) for row, result in zip(rows, results, strict=True)]
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(_PAGE)
    return template.render(head=_HEAD, lines=[_cells(row) for row in rows], plot=picture, parts=parts)


def worst_cases(result: Mapping[str, Any]) -> list[Case]:
    """The samples with the lowest scores, worst first, with pictures where data and predictions are still where they were."""
    samples = [sample for sample in result.get("per_sample") or () if isinstance(sample, dict)]
    cases = []
    for sample in sorted(samples, key=_badness)[:WORST]:
        frames, words = _frames_of(result, sample)
        numbers = ", ".join(f"{name} {sample[name]:.3g}" for name in ("J", "F", "iou") if isinstance(sample.get(name), int | float))
        numbers += "" if "correct" not in sample else "right" if sample["correct"] else "wrong"
        said = f"{sample['response']!r}, expected {sample['ans']}" if "response" in sample else ""
        name = "/".join(str(sample[key]) for key in ("vid", "qid") if key in sample)
        cases.append(Case(name, numbers, words or said, _picture(frames)))
    return cases


def _badness(sample: Mapping[str, Any]) -> float:
    if "correct" in sample:
        return float(bool(sample["correct"]))
    return sum(float(sample.get(name, 0.0)) for name in ("J", "F", "iou"))


def _frames_of(result: Mapping[str, Any], sample: Mapping[str, Any]) -> tuple[list[tuple[Path, Path]], str]:
    """Some frames of a video with the images of their predictions, and the words that were asked; nothing for other benchmarks, or where files are gone."""
    name, split, root = result["benchmark"], result["split"], Path(str(result.get("data", "")))
    try:
        if (name, split) in LAYOUTS:
            entries = {(e.video, e.number): e for e in list_expressions(root, name, split)}
            entry = entries[sample["vid"], sample["qid"]]
            pairs = [(root / LAYOUTS[name, split][2] / entry.video / f"{frame}.jpg", frame) for frame in entry.frames]
            words = entry.text
        elif name == "groundmore":
            question = {(q.video, q.number): q for q in list_questions(root)}[sample["vid"], sample["qid"]]
            pairs, words = [(path, path.stem) for path in question.frames], question.text
        else:
            return [], ""
    except (UserError, KeyError):
        return [], ""
    folder = Path(str(result.get("predictions", ""))) / str(sample["vid"]) / str(sample["qid"])
    chosen = sorted({int(place) for place in np.linspace(0, len(pairs) - 1, SHOWN)})
    return [(pairs[place][0], folder / f"{pairs[place][1]}.png") for place in chosen], words


def _picture(frames: Sequence[tuple[Path, Path]]) -> str:
    """The frames side by side with the masks drawn over them, as a PNG in base 64; "" where none can be read."""
    drawn = []
    for photo, mask in frames:
        try:
            with open_image(photo) as image:
                pixels, _ = to_rgb(image, str(photo), upright=False)
            drawn.append(draw_objects(pixels, read_prediction(mask)[None]))
        except UserError:
            continue
    if not drawn:
        return ""
    strip = Image.fromarray(np.concatenate(drawn, axis=1))
    strip.thumbnail((900, 300))
    content = io.BytesIO()
    strip.save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode("ascii")


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Benchmarks</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; color-scheme: light dark; }
table { border-collapse: collapse; } td, th { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid #8884; }
td:nth-child(-n+2), th:nth-child(-n+2) { text-align: left; }
div.wide { overflow-x: auto; } img { max-width: 100%; } figure { margin: 1rem 0; } code { font-size: 90%; }
</style>
</head>
<body>
<h1>Benchmarks</h1>
<div class="wide"><table>
<tr>{% for cell in head %}<th>{{ cell }}</th>{% endfor %}</tr>
{% for line in lines %}<tr>{% for cell in line %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
<p>3B and 7B are the published scores (README.md of PolyU-ChenLab/UniPixel).</p>
<img alt="The scores beside the published ones" src="data:image/png;base64,{{ plot }}">
{% for row, result, cases in parts %}
<h2>{{ row.title }}</h2>
<p>{{ row.model }}, weights <code>{{ result.get("weights", "unknown") }}</code>, {{ result.get("dtype", "") }}, {{ result.get("date", "") }};
{{ row.samples }} samples, {{ row.failed }} failed.</p>
{% if result.get("corrected") %}<p>{{ result["corrected"]["why"] | join(" ") }}</p>{% endif %}
{% for case in cases %}<figure>
<figcaption><b>{{ case.name }}</b> {{ case.score }} {{ case.words }}</figcaption>
{% if case.picture %}<img alt="{{ case.name }}" src="data:image/png;base64,{{ case.picture }}">{% endif %}
</figure>
{% endfor %}
{% endfor %}
</body>
</html>
"""
