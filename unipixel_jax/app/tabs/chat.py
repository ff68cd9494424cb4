"""A conversation about a photo or a clip, which remembers objects by number."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from unipixel_jax.app import files
from unipixel_jax.app.answer import chip, figures, words
from unipixel_jax.app.events import MODEL, on
from unipixel_jax.app.marks import POINT, Canvas
from unipixel_jax.app.parts import Page, download_row, example_row, image_output, lead
from unipixel_jax.app.parts import files as updates
from unipixel_jax.app.stage import Stage, begun, build_stage
from unipixel_jax.app.worker import Figures, Result
from unipixel_jax.errors import UserError
from unipixel_jax.infer.chat import Chat
from unipixel_jax.infer.prediction import Prediction
from unipixel_jax.infer.visualize import draw_objects

NAME = "chat"
DOWNLOADS = ("Masks", "COCO JSON")
FIRST, SECOND = "Please segment the {}.", "What is <region>?"


@dataclass(eq=False)
class Conversation:
    """What was said.

    Attributes:
        chat: remembers it for the model.
        path: the upload.
        messages: what is shown of it.
    """

    chat: Chat
    path: str
    messages: list[dict[str, str]] = field(default_factory=list)

    @property
    def objects(self) -> str:
        """The objects so far as HTML."""
        known = " ".join(chip(number) for number in range(len(self.chat.objects)))
        return f'<div class="ux-lead">Objects so far: {known or "none"}</div>'

    def picture(self, frame: int) -> np.ndarray:
        """A frame with all objects so far [H, W, 3], uint8."""
        masks = [item.mask(frame) for item in self.chat.objects]
        return draw_objects(self.chat.clip.frames[frame], masks, range(len(masks)))

    def result(self) -> Result:
        """All objects so far as one answer."""
        clip = self.chat.clip
        found = Prediction("", [], self.chat.objects, clip.indices.tolist(), clip.frames.shape[1:3], ("object",), first=0)
        return Result(Path(self.path), found, Figures(0, 0))


def ask(
    page: Page, stage: Stage, conversation: Conversation | None, canvas: Canvas | None, tool: str, editor: dict[str, Any] | None, question: str
) -> list[Any]:
    """Ask about what is marked, or about anything.

    Returns:
        The conversation, its messages, an empty line for the next question, the values of the stage's outputs, the list of objects, the picture, and the
        downloads.

    Raises:
        UserError: there is no upload or no question; or see ``Chat.ask``.
    """
    if canvas is None or canvas.path is None:
        raise UserError("there is no picture or clip yet: upload one, or choose an example")
    if not question.strip():
        raise UserError("there is no question yet: ask something about the picture")
    marked = _with_open_stroke(stage, canvas, tool, editor)
    if conversation is None or conversation.path != canvas.path:
        conversation = Conversation(page.worker.chat(canvas.path), canvas.path)
    before, began = len(conversation.chat.objects), time.perf_counter()
    with page.worker.turn():
        found = conversation.chat.ask(question.strip(), marked.references, max_new_tokens=page.worker.limits.tokens)
    cost = Figures(time.perf_counter() - began, len(found.tokens))
    known = len(conversation.chat.objects)
    said = words(found, known)
    pointed = f' <span class="ux-caption">pointing at {len(marked.marks)}</span>' if marked.marks else ""
    conversation.messages += [
        {"role": "user", "content": escape(question.strip()) + pointed},
        {"role": "assistant", "content": f'{said}<div class="ux-figures">{figures(cost)}</div>'},
    ]
    picture = gr.skip() if known == before else gr.update(value=conversation.picture(canvas.frame), visible=True)
    result = conversation.result()
    paths = [files.masks(result, page.folder), files.coco(result, page.folder)] if known else [None, None]
    cleared = replace(marked, marks=(), corner=None)
    return [conversation, conversation.messages, "", *stage.show(cleared, tool), conversation.objects, picture, *updates(paths)]


def _with_open_stroke(stage: Stage, canvas: Canvas, tool: str, editor: dict[str, Any] | None) -> Canvas:
    """The canvas with what is painted, which in a conversation need not be anything."""
    try:
        return stage.with_stroke(canvas, tool, editor)
    except UserError:
        return canvas


def forget() -> list[Any]:
    """The values of the conversation's components when it begins anew."""
    return [None, [], "", '<div class="ux-lead">Objects so far: none</div>', gr.update(value=None, visible=False), *updates([None] * len(DOWNLOADS))]


def build(page: Page) -> None:
    """Build the tab."""
    with gr.Tab("Chat", id=NAME):
        lead("Talk about a picture. Objects keep their numbers: speak of them as [0], [1], and point at others with &lt;region&gt;.")
        with gr.Row():
            with gr.Column(scale=5, min_width=300) as left:
                stage = build_stage(NAME, page.worker.limits)
                shown = [page.photos[1], page.clips[0]]
                texts = [FIRST.format(example.names[-1]) for example in shown]

                def load(path: str, text: str) -> list[Any]:
                    return [*stage.show(begun(path, page.worker.limits)), POINT, text]

            with gr.Column(scale=6, min_width=300):
                talk = gr.Chatbot(
                    show_label=False, height=330, buttons=[], elem_id=f"{NAME}-talk", feedback_options=None, placeholder="Ask the first question below.",
                    render_markdown=False,
                )  # fmt: skip
                with gr.Row(equal_height=True):
                    question = gr.Textbox(
                        show_label=False, container=False, placeholder="Ask about the picture", max_lines=1, scale=6, elem_id=f"{NAME}-prompt", min_width=180
                    )
                    send = gr.Button("Send", variant="primary", scale=0, min_width=84, elem_id=f"{NAME}-run")
                objects = gr.HTML(forget()[3], elem_id=f"{NAME}-objects")
                picture = image_output("Objects so far", visible=False, elem_id=f"{NAME}-result")
                with gr.Row(elem_classes="ux-tools"):
                    anew = gr.Button("Start over", size="sm", elem_id=f"{NAME}-anew")
                downloads = download_row(NAME, DOWNLOADS)
        state = gr.State(None)
        with left:
            example_row(NAME, shown, texts, load, [*stage.outputs, stage.tool, question])

        def run_it(conversation: Conversation | None, canvas: Canvas | None, tool: str, editor: Any, text: str) -> list[Any]:
            return ask(page, stage, conversation, canvas, tool, editor, text)

        outputs = [state, talk, question, *stage.outputs, objects, picture, *downloads]
        on([send.click, question.submit], run_it, [state, stage.state, stage.tool, stage.editor, question], outputs, MODEL, show_progress_on=[talk])
        on([anew.click, stage.change.click], forget, [], [state, talk, question, objects, picture, *downloads])
        on([stage.slider.release], _at_frame, [state, stage.slider], [picture])


def _at_frame(conversation: Conversation | None, frame: float) -> Any:
    return gr.skip() if conversation is None or not conversation.chat.objects else conversation.picture(int(frame))
