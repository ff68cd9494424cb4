"""Questions about several objects that a visitor points at and names: their masks, and an answer that speaks of them by number."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import gradio as gr

from unipixel_jax.app import files
from unipixel_jax.app.answer import EMPTY, card, chip
from unipixel_jax.app.events import MODEL, on
from unipixel_jax.app.marks import POINT, Canvas, Marked
from unipixel_jax.app.parts import Page, answer_output, download_row, example_row, image_output, lead, question_row, video_output
from unipixel_jax.app.parts import files as updates
from unipixel_jax.app.stage import Stage, begun, build_stage
from unipixel_jax.errors import UserError
from unipixel_jax.processing.prompts import REGION, Box, Mask, Point

NAME = "pixelqa"
DOWNLOADS = ("Picture", "Masks", "COCO JSON")
QUESTION = "Do [0] and [1] have the same colour?"


def listed(canvas: Canvas | None) -> str:
    """The objects that are marked, with their numbers and names, as HTML."""
    marks = canvas.marks if canvas is not None else ()
    if not marks:
        return '<div class="ux-lead">No object yet. The first one you mark is [0].</div>'
    return f'<div class="ux-lead">Objects: {" ".join(chip(number, mark.name) for number, mark in enumerate(marks))}</div>'


def named(canvas: Canvas | None, name: str) -> Canvas:
    """The canvas whose last object has a name.

    Raises:
        UserError: there is no object, the name is empty, or another object has it.
    """
    name = name.strip()
    if canvas is None or not canvas.marks:
        raise UserError("there is no object to name yet: mark one first")
    if not name or re.search(r"[\[\]<>|]", name) or name.isdecimal():
        raise UserError(f"{name!r} is no name for an object: expected letters, such as 'left car', without brackets")
    if name.lower() in (mark.name.lower() for mark in canvas.marks[:-1]):
        raise UserError(f"there is an object named {name!r} already: choose another name")
    return replace(canvas, marks=(*canvas.marks[:-1], replace(canvas.marks[-1], name=name)))


def referred(question: str, marks: tuple[Marked, ...]) -> tuple[str, list[Point | Box | Mask]]:
    """The question as the model takes it, and its references.

    Args:
        question: speaks of objects as ``[0]`` or ``[name]``; without any of these, all objects are meant.
        marks: the objects.

    Returns:
        The question, in which each object is a ``<region>`` where it is spoken of first, and later its place among them in brackets; and those objects.

    Raises:
        UserError: the question speaks of an object that is not there.
    """
    order: list[int] = []

    def write(found: re.Match[str]) -> str:
        word = found[1].strip()
        known = [number for number, mark in enumerate(marks) if mark.name and mark.name.lower() == word.lower()]
        number = int(word) if word.isdecimal() else known[0] if known else -1
        if not 0 <= number < len(marks):
            names = ", ".join(f"[{mark.name or number}]" for number, mark in enumerate(marks))
            raise UserError(f"the question speaks of [{word}], which is not marked: expected some of {names}")
        if number in order:
            return f"[{order.index(number)}]"
        order.append(number)
        return REGION

    text = re.sub(r"\[([^\[\]]+)\]", write, question)
    chosen = marks if not order else [marks[number] for number in order]
    return text, [mark.reference for mark in chosen]


def ask(page: Page, stage: Stage, canvas: Canvas | None, tool: str, editor: dict[str, Any] | None, question: str) -> list[Any]:
    """Answer.

    Returns:
        The values of the stage's outputs, then the list of objects, the picture, the film, the answer's HTML, and the downloads.

    Raises:
        UserError: nothing is marked, the question is empty or speaks of what is not marked; or see ``Worker.ask``.
    """
    marked = stage.with_stroke(canvas, tool, editor)
    if not marked.marks:
        raise UserError("nothing is marked yet: click on the objects that the question is about, or paint over them")
    if not question.strip():
        raise UserError(f"there is no question yet: ask something, for example '{QUESTION}'")
    text, references = referred(question, marked.marks)
    result = page.worker.ask(marked.path, text, references)
    several = len(result.prediction.frames) > 1
    shown = files.film(result, "overlay", page.folder) if several else files.photo(result, "overlay", page.folder)
    paths = [shown, files.masks(result, page.folder), files.coco(result, page.folder)]
    picture = gr.update(value=None if several else str(shown), visible=not several)
    film = gr.update(value=str(shown) if several else None, visible=several)
    return [*stage.show(marked, tool), listed(marked), picture, film, card(result), *updates(paths)]


def build(page: Page) -> None:
    """Build the tab."""
    with gr.Tab("PixelQA", id=NAME):
        lead("Mark objects, name them if you like, and ask about them by [number] or [name]: the answer shows which is which.")
        with gr.Row():
            with gr.Column(scale=5, min_width=300):
                stage = build_stage(NAME, page.worker.limits)
                objects = gr.HTML(listed(None), elem_id=f"{NAME}-objects")
                with gr.Row(equal_height=True):
                    name = gr.Textbox(show_label=False, container=False, placeholder="Name of the last object (optional)", max_lines=1, elem_id=f"{NAME}-name")
                    call = gr.Button("Name it", size="sm", min_width=90, scale=0)
                question, run = question_row(NAME, QUESTION, "Ask", "Question")
                shown, words = [page.photos[0], page.clips[0]], [QUESTION, "What is [0]?"]

                def load(path: str, text: str) -> list[Any]:
                    canvas = example_canvas(page, path, 2 if text == QUESTION else 1)
                    return [*stage.show(canvas), POINT, text, listed(canvas)]

                example_row(NAME, shown, words, load, [*stage.outputs, stage.tool, question, objects])
            with gr.Column(scale=6, min_width=300):
                picture = image_output("Objects", elem_id=f"{NAME}-result")
                film = video_output("Objects", visible=False, elem_id=f"{NAME}-film")
                answer = answer_output(NAME)
                downloads = download_row(NAME, DOWNLOADS)
        results = [picture, film, answer, *downloads]
        inputs = [stage.state, stage.tool, stage.editor, question]

        def run_it(canvas: Canvas | None, tool: str, editor: Any, words: str) -> list[Any]:
            return ask(page, stage, canvas, tool, editor, words)

        on([run.click, question.submit], run_it, inputs, [*stage.outputs, objects, *results], MODEL, show_progress_on=[picture, film])
        on([call.click, name.submit], lambda canvas, text: _name(canvas, text), [stage.state, name], [stage.state, objects, name])
        on([stage.state.change], listed, [stage.state], [objects])
        empty = [gr.update(value=None, visible=True), gr.update(value=None, visible=False), EMPTY, *updates([None] * len(DOWNLOADS))]
        on([stage.change.click], lambda: empty, [], results)


def example_canvas(page: Page, path: str, objects: int) -> Canvas:
    """The canvas of an example with points on the objects in front."""
    canvas = begun(path, page.worker.limits)
    places = next(example.places for example in (*page.photos, *page.clips) if str(example.path) == path)
    return replace(canvas, marks=tuple(Marked(Point(*place)) for place in places[-objects:]))


def _name(canvas: Canvas | None, text: str) -> list[Any]:
    found = named(canvas, text)
    return [found, listed(found), ""]
