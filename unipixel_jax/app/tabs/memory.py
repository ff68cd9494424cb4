"""What the tracker remembers, while it tracks."""

from __future__ import annotations

import time
from collections.abc import Iterator

import gradio as gr

from unipixel_jax.app.answer import notice, words
from unipixel_jax.app.bank import Album, bank_html, frames_held
from unipixel_jax.app.events import LIVE, on
from unipixel_jax.app.media import open_media
from unipixel_jax.app.parts import Page, example_row, lead, question_row, video_input
from unipixel_jax.app.pictures import frame_html
from unipixel_jax.app.worker import require_prompt
from unipixel_jax.errors import UserError
from unipixel_jax.infer.prediction import Collector
from unipixel_jax.infer.visualize import draw_objects

NAME = "memory"
EMPTY_FRAME, EMPTY_BANK = notice("The clip plays here while it is tracked."), notice("Its memory fills here.")


def follow(page: Page, path: str | None, prompt: str, pause: float) -> Iterator[list[str]]:
    """Track a clip, and show its memory with every frame.

    Yields:
        The frame and the memory as HTML.

    Raises:
        UserError: nothing is segmented; or see ``Worker.segment``.
    """
    source = open_media(path, page.worker.limits)
    if source.is_image:
        raise UserError("a photo needs no memory: give a clip")
    stream = page.worker.track(source, require_prompt(prompt))
    if not stream.answer.spans:
        raise UserError("nothing is segmented, so there is nothing to remember: ask for something that is to be seen")
    said, album = words(Collector().prediction(stream.answer)), Album()
    for place, result in enumerate(page.worker.frames(stream)):
        state = stream.save()
        album.add(place, result, frames_held(state))
        caption = f"frame {result.frame} of 0 to {len(source) - 1} · {said}"
        yield [frame_html(draw_objects(result.pixels, result.masks, result.objects), caption), bank_html(state, result.objects, album)]
        time.sleep(pause)


def build(page: Page) -> None:
    """Build the tab."""
    with gr.Tab("Memory", id=NAME):
        lead(
            "Watch what the tracker remembers of each object: frames on which it was prompted stay, and of the others the latest six. "
            "Below each frame are the strength of its memory, its age, and how sure the object was to be there."
        )
        with gr.Row():
            with gr.Column(scale=5, min_width=300):
                clip = video_input(elem_id=f"{NAME}-clip")
                prompt, run = question_row(NAME, "Please segment the …", "Track")
                pause = gr.Slider(0, 1, value=0.2, step=0.1, label="Pause after each frame (seconds)", elem_id=f"{NAME}-pause")
                stop = gr.Button("Stop", size="sm", elem_id=f"{NAME}-stop")
                example_row(NAME, page.clips, [example.prompt for example in page.clips], lambda path, text: [path, text], [clip, prompt])
            with gr.Column(scale=6, min_width=300):
                frame = gr.HTML(EMPTY_FRAME, elem_id=f"{NAME}-now")
                bank = gr.HTML(EMPTY_BANK, elem_id=f"{NAME}-bank")

        def run_it(path: str | None, text: str, seconds: float) -> Iterator[list[str]]:
            yield from follow(page, path, text, seconds)

        running = on([run.click, prompt.submit], run_it, [clip, prompt, pause], [frame, bank], LIVE, show_progress="hidden")
        stop.click(None, None, None, cancels=[running], api_visibility="private")
        on([clip.clear], lambda: [EMPTY_FRAME, EMPTY_BANK], [], [frame, bank], cancels=[running])
