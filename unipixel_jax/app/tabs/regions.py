"""Questions about one region of a photo or a clip, which a visitor points at or paints."""

from __future__ import annotations

from typing import Any

import gradio as gr

from unipixel_jax.app import files
from unipixel_jax.app.answer import EMPTY, card
from unipixel_jax.app.events import MODEL, on
from unipixel_jax.app.marks import POINT, Canvas, Marked
from unipixel_jax.app.parts import Page, answer_output, download_row, example_row, image_output, lead, question_row, video_output
from unipixel_jax.app.parts import files as updates
from unipixel_jax.app.stage import Stage, begun, build_stage
from unipixel_jax.errors import UserError
from unipixel_jax.processing.prompts import Point

QUESTION = "What is <region>?"
DOWNLOADS = ("Picture", "Masks", "COCO JSON")


def ask(page: Page, stage: Stage, canvas: Canvas | None, tool: str, editor: dict[str, Any] | None, question: str) -> list[Any]:
    """Answer a question about what is marked.

    Returns:
        The values of the stage's outputs, then the picture or film, the answer's HTML, and the downloads.

    Raises:
        UserError: nothing is marked; or see ``Worker.ask``.
    """
    marked = stage.with_stroke(canvas, tool, editor)
    if not marked.marks:
        raise UserError("nothing is marked yet: click on the object, draw a box around it, or paint over it")
    result = page.worker.ask(marked.path, question.strip() or QUESTION, marked.references)
    several = len(result.prediction.frames) > 1
    picture = files.film(result, "overlay", page.folder) if several else files.photo(result, "overlay", page.folder)
    paths = [picture, files.masks(result, page.folder), files.coco(result, page.folder)]
    return [*stage.show(marked, tool), str(picture), card(result), *updates(paths)]


def example_canvas(page: Page, path: str) -> Canvas:
    """The canvas of an example, with a point on the object in front."""
    canvas = begun(path, page.worker.limits)
    place = next(example.places[-1] for example in (*page.photos, *page.clips) if str(example.path) == path)
    return Canvas(canvas.path, canvas.size, canvas.frames, 0, (Marked(Point(*place)),))


def _build(page: Page, name: str, title: str, clips: bool) -> None:
    with gr.Tab(title, id=name):
        lead(
            "Point at an object on any frame of a clip, or paint over it, and ask about it."
            if clips
            else "Point at an object, draw a box around it or paint over it, and ask about it."
        )
        with gr.Row():
            with gr.Column(scale=5, min_width=300):
                stage = build_stage(name, page.worker.limits, photos=not clips, clips=clips, single=True)
                question, run = question_row(name, QUESTION, "Ask", "Question")
                shown = page.clips if clips else page.photos
                words = [QUESTION] * len(shown)

                def load(path: str, text: str) -> list[Any]:
                    return [*stage.show(example_canvas(page, path)), POINT, text]

                example_row(name, shown, words, load, [*stage.outputs, stage.tool, question])
            with gr.Column(scale=6, min_width=300):
                if clips:
                    picture: Any = video_output("The region", elem_id=f"{name}-result")
                else:
                    picture = image_output("The region", elem_id=f"{name}-result")
                answer = answer_output(name)
                downloads = download_row(name, DOWNLOADS)
        outputs = [*stage.outputs, picture, answer, *downloads]
        inputs = [stage.state, stage.tool, stage.editor, question]
        on([run.click, question.submit], lambda *given: ask(page, stage, *given), inputs, outputs, MODEL, show_progress_on=[picture])
        empty = [None, EMPTY, *updates([None] * len(DOWNLOADS))]
        on([stage.change.click], lambda: empty, [], [picture, answer, *downloads])


def build_image(page: Page) -> None:
    """Build the tab for photos."""
    _build(page, "image-regions", "Image regions", clips=False)


def build_video(page: Page) -> None:
    """Build the tab for clips."""
    _build(page, "video-regions", "Video regions", clips=True)
