"""Pieces that several tabs share: the visitor's upload, the question, the answer with its downloads, and examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from unipixel_jax.app.answer import EMPTY
from unipixel_jax.app.events import on
from unipixel_jax.app.examples import Example
from unipixel_jax.app.files import Folder
from unipixel_jax.app.worker import Worker

OVERLAY, SIDE_BY_SIDE, CUTOUT = "Overlay", "Side by side", "Cut-out"
LOOKS = {OVERLAY: "overlay", SIDE_BY_SIDE: "side-by-side", CUTOUT: "cutout"}
"""The page's words for ``looks.LOOKS``."""
HEIGHT = 420
"""The height of a picture or a film on the page, in pixels."""
PHOTO, CLIP = "Photo", "Clip"


@dataclass(frozen=True)
class Page:
    """What every tab is built with.

    Attributes:
        worker: the model.
        folder: where results go.
        photos, clips: the examples.
        streams: whether visitors may give addresses of streams, which the server then opens.
    """

    worker: Worker
    folder: Folder
    photos: Sequence[Example]
    clips: Sequence[Example]
    streams: bool = False


def lead(text: str) -> None:
    """A tab's sentence of what it is for."""
    gr.HTML(f'<div class="ux-lead">{text}</div>')


def image_input(label: str = "Photo", **more: Any) -> gr.Image:
    """A photo to upload; its file comes as it is, and is opened by our own reader."""
    options = {"placeholder": "Drop a photo here, or click to choose one", "height": HEIGHT, "sources": ["upload"], "buttons": []}
    return gr.Image(label=label, type="filepath", image_mode=None, **{**options, **more})


def video_input(label: str = "Clip", **more: Any) -> gr.Video:
    """A clip to upload."""
    return gr.Video(label=label, height=HEIGHT, sources=["upload"], buttons=[], **more)


def image_output(label: str = "Result", **more: Any) -> gr.Image:
    """A picture that is shown."""
    return gr.Image(label=label, interactive=False, height=HEIGHT, type="filepath", format="png", buttons=["fullscreen"], elem_classes="ux-out", **more)


def video_output(label: str = "Result", **more: Any) -> gr.Video:
    """A film that is shown, over and over."""
    return gr.Video(label=label, interactive=False, height=HEIGHT, autoplay=True, loop=True, buttons=[], elem_classes="ux-out", **more)


def question_row(identity: str, placeholder: str, button: str = "Segment", label: str = "Prompt", visible: bool = True) -> tuple[gr.Textbox, gr.Button]:
    """A line for words, which Enter sends, and the button that does the same; ``visible`` is the button's."""
    words = gr.Textbox(label=label, placeholder=placeholder, lines=1, max_lines=1, elem_id=f"{identity}-prompt")
    return words, gr.Button(button, variant="primary", visible=visible, elem_id=f"{identity}-run")


def answer_output(identity: str) -> gr.HTML:
    """The place of the answer."""
    return gr.HTML(EMPTY, elem_id=f"{identity}-answer")


def download_row(identity: str, labels: Sequence[str]) -> list[gr.DownloadButton]:
    """Buttons of files, which come into sight with the first answer."""
    with gr.Row(elem_classes="ux-files"):
        return [
            gr.DownloadButton(label, size="sm", visible=False, elem_id=f"{identity}-{label.lower().replace(' ', '-')}", min_width=96) for label in labels
        ]


def files(paths: Sequence[Any]) -> list[Any]:
    """The updates of download buttons: each with its file, or out of sight where there is none."""
    return [gr.DownloadButton(value=None if path is None else str(path), visible=path is not None) for path in paths]


def example_row(identity: str, shown: Sequence[Example], words: Sequence[str], load: Callable[..., Any], outputs: Sequence[Any]) -> None:
    """Examples as buttons with a small picture, which fill a tab at a click.

    Args:
        identity: the tab's.
        shown: the photos or clips.
        words: what each button says and asks.
        load: takes the example's path and words, and returns the values of the outputs.
        outputs: components.
    """
    gr.HTML('<div class="ux-label">Examples</div>')
    with gr.Row(elem_classes="ux-examples"):
        for number, (example, text) in enumerate(zip(shown, words, strict=False)):
            button = gr.Button(text, icon=str(example.thumbnail), size="sm", elem_id=f"{identity}-example-{number}", elem_classes="ux-example", min_width=120)
            on([button.click], partial(load, str(example.path), text), [], outputs)
