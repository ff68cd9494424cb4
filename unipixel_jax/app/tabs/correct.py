"""A photo or clip whose masks a visitor mends by clicks on any frame."""

from __future__ import annotations

from typing import Any

import gradio as gr

from unipixel_jax.app import correction as mending
from unipixel_jax.app import files
from unipixel_jax.app.answer import EMPTY, card
from unipixel_jax.app.correction import Correction
from unipixel_jax.app.events import MODEL, on
from unipixel_jax.app.marks import BESIDE, ON
from unipixel_jax.app.parts import CLIP, PHOTO, Page, answer_output, download_row, example_row, image_input, lead, question_row, video_input
from unipixel_jax.app.parts import files as updates
from unipixel_jax.errors import UserError

NAME = "correct"
DOWNLOADS = ("Film or picture", "Masks", "COCO JSON")
STALE = "The clicks changed this frame. Press “Track again” to carry them through the clip."
FRESH = "Click where a mask is wrong, on any frame."


def shown(correction: Correction) -> list[Any]:
    """The values of the tab's state, picture, frame slider, objects, note and answer."""
    objects = [str(number) for number in correction.session.objects]
    count = len(correction.results)
    slider = gr.update(visible=count > 1, maximum=max(1, count - 1), value=correction.frame)
    answer = card(mending.result_of(correction), STALE if correction.stale else FRESH)
    return [correction, correction.picture(), slider, gr.update(choices=objects, visible=len(objects) > 1), gr.update(interactive=correction.stale), answer]


def segment(page: Page, kind: str, photo: str | None, clip: str | None, prompt: str, progress: Any = gr.Progress()) -> list[Any]:  # noqa: B008
    """Answer, and show the first frame.

    Returns:
        What ``shown`` returns, the object that is mended, and the downloads.

    Raises:
        UserError: see ``correction.begin``.
    """
    progress(0, desc="answering")
    found = mending.begin(page.worker, photo if kind == PHOTO else clip, prompt, lambda done, of: progress((done, of), desc="tracking", unit="frames"))
    values = shown(found)
    values[3] = gr.update(choices=[str(number) for number in found.session.objects], value="1", visible=len(found.session.objects) > 1)
    return [*values, *updates(downloads(page, found))]


def downloads(page: Page, correction: Correction) -> list[Any]:
    """The files of the clip as it is now."""
    result = mending.result_of(correction)
    several = len(result.prediction.frames) > 1
    picture = files.film(result, "overlay", page.folder) if several else files.photo(result, "overlay", page.folder)
    return [picture, files.masks(result, page.folder), files.coco(result, page.folder)]


def click(page: Page, correction: Correction | None, number: str, sign: str, x: float, y: float) -> list[Any]:
    """Mend the mask on the frame that is shown; returns what ``shown`` returns, and the downloads.

    Raises:
        UserError: see ``correction.click``.
    """
    found = mending.click(page.worker, correction, int(number or 1), sign == ON, x, y)
    return _after(page, found)


def _after(page: Page, correction: Correction) -> list[Any]:
    """Downloads of a clip wait until it has been tracked again."""
    return [*shown(correction), *updates([None] * len(DOWNLOADS) if correction.stale else downloads(page, correction))]


def goto(correction: Correction | None, frame: float) -> list[Any]:
    """Show another frame; returns what ``shown`` returns.

    Raises:
        UserError: there is no clip.
    """
    if correction is None:
        raise UserError("there is no result yet: segment something first")
    correction.frame = min(int(frame), len(correction.results) - 1)
    return shown(correction)


def build(page: Page) -> None:
    """Build the tab."""
    with gr.Tab("Click to correct", id=NAME):
        lead("Segment something, then mend its mask with clicks on any frame, and track the clip again.")
        with gr.Row():
            with gr.Column(scale=5, min_width=300):
                kind = gr.Radio([PHOTO, CLIP], value=CLIP, show_label=False, container=False, elem_id=f"{NAME}-kind")
                photo = image_input(elem_id=f"{NAME}-photo", visible=False)
                clip = video_input(elem_id=f"{NAME}-clip")
                prompt, run = question_row(NAME, "Please segment the …")
                media = [page.clips[0], page.photos[0]]
                example_row(NAME, media, [example.prompt for example in media], lambda path, words: _load(path, words), [kind, photo, clip, prompt])
            with gr.Column(scale=6, min_width=300):
                picture = gr.Image(label="Result", interactive=False, format="png", buttons=[], elem_id=f"{NAME}-board", elem_classes="ux-board")
                with gr.Row(elem_classes="ux-tools"):
                    sign = gr.Radio([ON, BESIDE], value=ON, show_label=False, container=False, elem_id=f"{NAME}-sign")
                    number = gr.Radio(["1"], value="1", label="Object", visible=False, elem_id=f"{NAME}-object")
                slider = gr.Slider(0, 1, value=0, step=1, label="Frame", visible=False, elem_id=f"{NAME}-frame")
                with gr.Row(elem_classes="ux-tools"):
                    again = gr.Button("Track again", variant="primary", size="sm", interactive=False, elem_id=f"{NAME}-again")
                    back = gr.Button("Undo click", size="sm", elem_id=f"{NAME}-undo")
                answer = answer_output(NAME)
                files_row = download_row(NAME, DOWNLOADS)
        state = gr.State(None)
        outputs = [state, picture, slider, number, again, answer]

        def run_it(kind: str, photo: str | None, clip: str | None, words: str, progress: Any = gr.Progress()) -> list[Any]:  # noqa: B008
            return segment(page, kind, photo, clip, words, progress)

        def click_it(correction: Correction | None, number: str, sign: str, event: gr.SelectData) -> list[Any]:
            return click(page, correction, number, sign, *event.index)

        def track_it(correction: Correction | None) -> list[Any]:
            return _after(page, mending.propagate(page.worker, correction))

        def undo_it(correction: Correction | None, number: str) -> list[Any]:
            return _after(page, mending.undo(page.worker, correction, int(number or 1)))

        everything = [*outputs, *files_row]
        on([run.click, prompt.submit], run_it, [kind, photo, clip, prompt], everything, MODEL, show_progress_on=[picture])
        on([picture.select], click_it, [state, number, sign], everything, MODEL, show_progress_on=[picture])
        on([again.click], track_it, [state], everything, MODEL, show_progress_on=[picture])
        on([back.click], undo_it, [state, number], everything, MODEL, show_progress_on=[picture])
        on([slider.release], goto, [state, slider], outputs)
        on([kind.change], lambda kind: [gr.update(visible=kind == PHOTO), gr.update(visible=kind == CLIP)], [kind], [photo, clip])
        empty = [None, None, gr.update(visible=False, value=0), gr.update(visible=False), gr.update(interactive=False), EMPTY]
        on([clip.clear, photo.clear], lambda: [*empty, *updates([None] * len(DOWNLOADS))], [], everything)


def _load(path: str, words: str) -> list[Any]:
    photo = path.endswith(".png")
    uploads = [gr.update(value=path if own else None, visible=own) for own in (photo, not photo)]
    return [PHOTO if photo else CLIP, *uploads, words]
