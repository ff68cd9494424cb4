"""A camera, a clip or a stream, with masks as the frames come."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from unipixel_jax.app.answer import notice
from unipixel_jax.app.events import LIVE, on
from unipixel_jax.app.live import Following, look, play
from unipixel_jax.app.media import open_media
from unipixel_jax.app.parts import CLIP, HEIGHT, Page, example_row, lead, question_row, video_input
from unipixel_jax.app.worker import require_prompt
from unipixel_jax.errors import UserError
from unipixel_jax.processing.frames import open_address

NAME = "live"
CAMERA, STREAM = "Camera", "Stream"
SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "http", "https", "srt", "rtp", "udp", "tcp")
EMPTY = notice("Frames appear here with their masks as they come.")


def run(page: Page, kind: str, clip: str | None, address: str, prompt: str) -> Iterator[str]:
    """Play a clip or a stream.

    Raises:
        UserError: there is none, it is a photo, the page opens no such address, or see ``live.play``.
    """
    if kind == STREAM:
        require_prompt(prompt)
        yield from play(page.worker, open_address(_checked(page, address)), prompt)
        return
    yield from play(page.worker, open_media(clip, page.worker.limits), prompt)


def _checked(page: Page, address: str) -> str:
    """The address of a stream. What FFmpeg would open on this machine, such as its files and cameras, is refused."""
    shown = address.strip()
    if not page.streams:
        raise UserError("this page opens no addresses: start it with --allow-url")
    if not shown:
        raise UserError("there is no address yet: give that of a stream, such as rtsp://host/stream")
    if not shown.lower().startswith(tuple(f"{scheme}://" for scheme in SCHEMES)):
        raise UserError(f"{shown} is no address of a stream: expected one that begins with {', '.join(f'{scheme}://' for scheme in SCHEMES)}")
    return shown


def _chosen(kind: str) -> list[Any]:
    return [gr.update(visible=kind == part) for part in (CAMERA, CLIP, STREAM)] + [gr.update(visible=kind != CAMERA), EMPTY]


def build(page: Page) -> None:
    """Build the tab."""
    with gr.Tab("Live", id=NAME):
        lead("Follow objects while the frames come: write what to look for, then start the camera, or play a clip.")
        with gr.Row():
            with gr.Column(scale=5, min_width=300):
                kinds = [CAMERA, CLIP, *([STREAM] if page.streams else [])]
                kind = gr.Radio(kinds, value=CAMERA, show_label=False, container=False, elem_id=f"{NAME}-kind")
                camera = gr.Image(
                    label="Camera", sources=["webcam"], streaming=True, type="numpy", height=HEIGHT, buttons=[], elem_id=f"{NAME}-camera",
                    webcam_options=gr.WebcamOptions(mirror=False),
                )  # fmt: skip
                clip = video_input(elem_id=f"{NAME}-clip", visible=False)
                address = gr.Textbox(label="Address", placeholder="rtsp://host/stream", max_lines=1, visible=False, elem_id=f"{NAME}-address")
                prompt, start = question_row(NAME, "Please segment the …", "Play", visible=False)
                stop = gr.Button("Stop", size="sm", elem_id=f"{NAME}-stop")
                shown = page.clips
                example_row(NAME, shown, [example.prompt for example in shown], _load, [kind, camera, clip, address, start, prompt])
            with gr.Column(scale=6, min_width=300):
                now = gr.HTML(EMPTY, elem_id=f"{NAME}-now")
        state = gr.State(None)

        def run_it(kind: str, path: str | None, where: str, text: str) -> Iterator[str]:
            yield from run(page, kind, path, where, text)

        def look_at(following: Following | None, frame: Any, text: str) -> list[Any]:
            found, html = look(page.worker, following, frame, text)
            return [found, gr.skip() if html is None else html]

        playing = on([start.click, prompt.submit], run_it, [kind, clip, address, prompt], [now], LIVE, show_progress="hidden")
        stop.click(None, None, None, cancels=[playing], api_visibility="private")
        streaming = {"stream_every": 0.2, "time_limit": page.worker.limits.live_seconds, "show_progress": "hidden"}
        on([camera.stream], look_at, [state, camera, prompt], [state, now], LIVE, **streaming)
        on([kind.change], _chosen, [kind], [camera, clip, address, start, now])


def _load(path: str, text: str) -> list[Any]:
    return [CLIP, gr.update(visible=False), gr.update(value=path, visible=True), gr.update(visible=False), gr.update(visible=True), text]
