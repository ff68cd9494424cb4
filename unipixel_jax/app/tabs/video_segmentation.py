"""Words to masks on every frame of a clip."""

from __future__ import annotations

from typing import Any

import gradio as gr

from unipixel_jax.app import files
from unipixel_jax.app.answer import EMPTY, card
from unipixel_jax.app.events import MODEL, on
from unipixel_jax.app.parts import LOOKS, OVERLAY, SIDE_BY_SIDE, Page, answer_output, download_row, example_row, lead, question_row, video_input, video_output
from unipixel_jax.app.parts import files as updates
from unipixel_jax.app.worker import require_prompt

NAME = "video-segmentation"
DOWNLOADS = ("MP4", "Contact sheet", "Masks ZIP", "COCO JSON")


def segment(page: Page, path: str | None, prompt: str, look: str, progress: Any = gr.Progress()) -> list[Any]:  # noqa: B008
    """Answer, and follow the objects through the clip.

    Returns:
        The film, the answer's HTML, and the downloads.

    Raises:
        UserError: see ``Worker.segment``.
    """
    progress(0, desc="answering")
    result = page.worker.segment(path, require_prompt(prompt), photo=False, tell=lambda done, of: progress((done, of), desc="tracking", unit="frames"))
    if not result.prediction.objects:
        return [None, card(result), *updates([None] * len(DOWNLOADS))]
    progress(None, desc="drawing")
    film = files.film(result, LOOKS[look], page.folder)
    paths = [film, files.sheet(result, page.folder), files.masks(result, page.folder), files.coco(result, page.folder)]
    return [str(film), card(result), *updates(paths)]


def build(page: Page) -> None:
    """Build the tab."""
    with gr.Tab("Video segmentation", id=NAME):
        lead("Say what to look for, and follow it through every frame. The film keeps its sound.")
        with gr.Row():
            with gr.Column(scale=5, min_width=300):
                clip = video_input(elem_id=f"{NAME}-clip")
                look = gr.Radio([OVERLAY, SIDE_BY_SIDE], value=OVERLAY, show_label=False, container=False, elem_id=f"{NAME}-look")
                prompt, run = question_row(NAME, "Please segment the …")
                example_row(NAME, page.clips, [example.prompt for example in page.clips], lambda path, words: [path, words], [clip, prompt])
            with gr.Column(scale=6, min_width=300):
                film = video_output(elem_id=f"{NAME}-result")
                answer = answer_output(NAME)
                downloads = download_row(NAME, DOWNLOADS)
        shown = [film, answer, *downloads]

        def run_it(path: str | None, words: str, style: str, progress: Any = gr.Progress()) -> list[Any]:  # noqa: B008
            return segment(page, path, words, style, progress)

        on([run.click, prompt.submit], run_it, [clip, prompt, look], shown, MODEL, show_progress_on=[film])
        on([clip.clear, clip.upload], lambda: [None, EMPTY, *updates([None] * len(DOWNLOADS))], [], shown)
