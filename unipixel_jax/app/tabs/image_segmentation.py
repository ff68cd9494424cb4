"""Words to masks in a photo."""

from __future__ import annotations

from typing import Any

import gradio as gr

from unipixel_jax.app import files
from unipixel_jax.app.answer import EMPTY, card
from unipixel_jax.app.events import MODEL, on
from unipixel_jax.app.parts import LOOKS, OVERLAY, Page, answer_output, download_row, example_row, image_input, image_output, lead, question_row
from unipixel_jax.app.parts import files as updates
from unipixel_jax.app.worker import Result, require_prompt

NAME = "image-segmentation"
DOWNLOADS = ("Picture", "Masks PNG", "COCO JSON")


def segment(page: Page, path: str | None, prompt: str, look: str) -> list[Any]:
    """Answer, and show the objects.

    Returns:
        The result, the picture, the answer's HTML, and the downloads.

    Raises:
        UserError: see ``Worker.segment``.
    """
    result = page.worker.segment(path, require_prompt(prompt), photo=True)
    picture = files.photo(result, LOOKS[look], page.folder)
    paths = [picture, files.masks(result, page.folder), files.coco(result, page.folder)] if result.prediction.objects else [picture, None, None]
    return [result, str(picture), card(result), *updates(paths)]


def relook(page: Page, result: Result | None, look: str) -> list[Any]:
    """Show the objects of the last answer in another way: the picture, and its download."""
    if result is None:
        return [gr.skip(), gr.skip()]
    picture = files.photo(result, LOOKS[look], page.folder)
    return [str(picture), *updates([picture])]


def build(page: Page) -> None:
    """Build the tab."""
    with gr.Tab("Image segmentation", id=NAME):
        lead("Say what to look for, and get its mask.")
        with gr.Row():
            with gr.Column(scale=5, min_width=300):
                photo = image_input(elem_id=f"{NAME}-photo")
                prompt, run = question_row(NAME, "Please segment the …")
                example_row(NAME, page.photos, [example.prompt for example in page.photos], lambda path, words: [path, words], [photo, prompt])
            with gr.Column(scale=6, min_width=300):
                picture = image_output(elem_id=f"{NAME}-result")
                look = gr.Radio(list(LOOKS), value=OVERLAY, show_label=False, container=False, elem_id=f"{NAME}-look")
                answer = answer_output(NAME)
                downloads = download_row(NAME, DOWNLOADS)
        result = gr.State(None)
        on([run.click, prompt.submit], lambda *given: segment(page, *given), [photo, prompt, look], [result, picture, answer, *downloads], MODEL)
        on([look.input], lambda *given: relook(page, *given), [result, look], [picture, downloads[0]])
        on([photo.clear, photo.upload], _empty, [], [result, picture, answer, *downloads])


def _empty() -> list[Any]:
    return [None, None, EMPTY, *updates([None] * len(DOWNLOADS))]
