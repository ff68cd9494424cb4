"""The stage of a tab: an upload that turns into a picture on which a visitor points with clicks and brush, frame by frame where it is a clip."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import gradio as gr
import numpy as np

from unipixel_jax.app.events import on
from unipixel_jax.app.limits import Limits
from unipixel_jax.app.marks import BOX, BRUSH, POINT, TOOLS, Canvas, clicked, drawn, painted, undone
from unipixel_jax.app.media import sampled
from unipixel_jax.app.parts import CLIP, PHOTO, image_input, video_input

HINTS = {
    POINT: "Click on the object.",
    BOX: "Click two opposite corners of a box around the object.",
    BRUSH: "Paint over the object, then ask, or add the stroke to mark another one.",
}


def begun(path: str | None, limits: Limits) -> Canvas:
    """The canvas of an upload.

    Raises:
        UserError: see ``media.open_media``.
    """
    if path is None:
        return Canvas()
    clip = sampled(path, limits)
    return Canvas(str(path), clip.frames.shape[1:3], len(clip.frames))


def frame_of(canvas: Canvas, limits: Limits) -> np.ndarray:
    """The frame that is shown [H, W, 3], uint8."""
    return sampled(canvas.path, limits).frames[canvas.frame]


@dataclass(frozen=True)
class Stage:
    """The components of a stage.

    Attributes:
        limits: what a visitor may upload.
        single: whether a new mark takes the place of the one before.
        state: the ``Canvas``.
        photo, clip: where files are uploaded; None where a tab does not take them. They are in sight until there is one.
        kind: whether a photo or a clip is uploaded; None where a tab takes one of them.
        board: holds the rest, which is in sight when there is an upload.
        picture: the frame with the marks, which takes clicks.
        editor: the same frame, which takes brush strokes.
        tool: one of ``marks.TOOLS``.
        slider: the frame's place among those that are pointed at.
        hint: says what to do.
        stroke: adds what is painted as an object.
        undo, clear, change: buttons.
    """

    limits: Limits
    single: bool
    state: gr.State
    photo: gr.Image | None
    clip: gr.Video | None
    kind: gr.Radio | None
    board: gr.Column
    picture: gr.Image
    editor: gr.ImageEditor
    tool: gr.Radio
    slider: gr.Slider
    hint: gr.HTML
    stroke: gr.Button
    undo: gr.Button
    clear: gr.Button
    change: gr.Button

    @property
    def outputs(self) -> list[Any]:
        """What ``show`` returns the values of."""
        return [self.state, *self._uploads, self.board, self.picture, self.editor, self.slider]

    @property
    def _uploads(self) -> list[Any]:
        return [part for part in (self.photo, self.clip, self.kind) if part is not None]

    def show(self, canvas: Canvas, tool: str = POINT) -> list[Any]:
        """The values of ``outputs`` for a canvas: the upload gives way to the board, or comes back where there is none."""
        there = canvas.path is not None
        away = [gr.update(visible=False) if there else gr.update(value=None, visible=part is self._first) for part in self._uploads]
        if self.kind is not None:
            away[-1] = gr.update(visible=not there, **({} if there else {"value": PHOTO}))
        board = gr.update(visible=there)
        if not there:
            return [canvas, *away, board, None, None, gr.update(visible=False, value=0)]
        pixels = frame_of(canvas, self.limits)
        picture = gr.update(value=drawn(canvas, pixels), visible=tool != BRUSH)
        editor = gr.update(value=_sheet(canvas, pixels) if tool == BRUSH else None, visible=tool == BRUSH)
        slider = gr.update(visible=canvas.frames > 1, maximum=max(1, canvas.frames - 1), value=canvas.frame)
        return [canvas, *away, board, picture, editor, slider]

    @property
    def _first(self) -> Any:
        return self.photo if self.photo is not None else self.clip

    def load(self, path: str | None) -> list[Any]:
        """The values of ``outputs`` for a new upload.

        Raises:
            UserError: see ``media.open_media``.
        """
        return self.show(begun(path, self.limits))

    def with_stroke(self, canvas: Canvas | None, tool: str, editor: dict[str, Any] | None) -> Canvas:
        """The canvas with what is painted and was not added yet.

        Raises:
            UserError: there is neither a stroke nor any mark.
        """
        canvas = canvas or Canvas()
        if tool != BRUSH or canvas.path is None:
            return canvas
        fresh = editor is not None and any(layer is not None and layer[..., 3].any() for layer in editor.get("layers") or ())
        return painted(self.ready(canvas), editor) if fresh or not canvas.marks else canvas

    def ready(self, canvas: Canvas) -> Canvas:
        """The canvas that takes another mark."""
        return replace(canvas, marks=()) if self.single else canvas


def _sheet(canvas: Canvas, pixels: np.ndarray) -> dict[str, Any]:
    background = drawn(canvas, pixels)
    return {"background": background, "layers": [], "composite": background}


def build_stage(identity: str, limits: Limits, *, photos: bool = True, clips: bool = True, single: bool = False) -> Stage:
    """Build a stage and connect what happens on it.

    Args:
        identity: the tab's.
        limits: what a visitor may upload.
        photos, clips: what a tab takes.
        single: whether a new mark takes the place of the one before.
    """
    both = photos and clips
    kind = gr.Radio([PHOTO, CLIP], value=PHOTO, show_label=False, container=False, elem_id=f"{identity}-kind") if both else None
    photo = image_input(elem_id=f"{identity}-photo") if photos else None
    clip = video_input(elem_id=f"{identity}-clip", visible=not both) if clips else None
    with gr.Column(visible=False) as board:
        tool = gr.Radio(TOOLS, value=POINT, show_label=False, container=False, elem_id=f"{identity}-tool")
        hint = gr.HTML(f'<div class="ux-lead">{HINTS[POINT]}</div>')
        picture = gr.Image(show_label=False, interactive=False, type="filepath", buttons=[], elem_id=f"{identity}-board", elem_classes="ux-board")
        editor = gr.ImageEditor(
            show_label=False, type="numpy", sources=(), transforms=(), layers=False, visible=False, buttons=[], elem_id=f"{identity}-editor",
            brush=gr.Brush(default_size=24, colors=["rgba(230, 159, 0, 0.7)"], color_mode="fixed"), canvas_size=(640, 640), height=470,
        )  # fmt: skip
        slider = gr.Slider(0, 1, value=0, step=1, label="Frame", visible=False, elem_id=f"{identity}-frame")
        with gr.Row(elem_classes="ux-tools"):
            stroke = gr.Button("Add stroke", size="sm", visible=False, elem_id=f"{identity}-stroke")
            undo = gr.Button("Undo", size="sm", elem_id=f"{identity}-undo")
            clear = gr.Button("Clear marks", size="sm", elem_id=f"{identity}-clear")
            change = gr.Button("Change picture", size="sm", elem_id=f"{identity}-change")
    state = gr.State(None)
    stage = Stage(limits, single, state, photo, clip, kind, board, picture, editor, tool, slider, hint, stroke, undo, clear, change)
    _connect(stage)
    return stage


def _connect(stage: Stage) -> None:
    outputs = stage.outputs
    for part in (stage.photo, stage.clip):
        if part is not None:
            on([part.upload], stage.load, [part], outputs)
    if stage.kind is not None:
        on([stage.kind.change], _swapped, [stage.kind], [stage.photo, stage.clip])

    def click(canvas: Canvas | None, tool: str, event: gr.SelectData) -> list[Any]:
        return on_click(stage, canvas, tool, *event.index)

    on([stage.picture.select], click, [stage.state, stage.tool], outputs)
    on([stage.tool.input], partial(_on_tool, stage), [stage.state, stage.tool], [stage.hint, stage.stroke, *outputs])
    on([stage.slider.release], partial(_on_frame, stage), [stage.state, stage.tool, stage.slider], outputs)
    on([stage.stroke.click], partial(_on_stroke, stage), [stage.state, stage.editor], outputs)
    on([stage.undo.click], partial(_on_undo, stage), [stage.state, stage.tool], outputs)
    on([stage.clear.click], partial(_on_clear, stage), [stage.state, stage.tool], outputs)
    on([stage.change.click], partial(stage.load, None), [], outputs)


def _swapped(kind: str) -> list[Any]:
    return [gr.update(visible=kind == PHOTO), gr.update(visible=kind == CLIP)]


def on_click(stage: Stage, canvas: Canvas | None, tool: str, x: float, y: float) -> list[Any]:
    """The values of the stage's outputs after a click on its picture, in pixels of the picture as it is shown."""
    return stage.show(clicked(stage.ready(canvas or Canvas()), tool, x, y), tool)


def _on_tool(stage: Stage, canvas: Canvas | None, tool: str) -> list[Any]:
    canvas = replace(canvas or Canvas(), corner=None)
    return [f'<div class="ux-lead">{HINTS[tool]}</div>', gr.update(visible=tool == BRUSH), *stage.show(canvas, tool)]


def _on_frame(stage: Stage, canvas: Canvas | None, tool: str, frame: float) -> list[Any]:
    return stage.show(replace(canvas or Canvas(), frame=int(frame), corner=None), tool)


def _on_stroke(stage: Stage, canvas: Canvas | None, editor: dict[str, Any] | None) -> list[Any]:
    return stage.show(painted(stage.ready(canvas or Canvas()), editor), BRUSH)


def _on_undo(stage: Stage, canvas: Canvas | None, tool: str) -> list[Any]:
    return stage.show(undone(canvas or Canvas()), tool)


def _on_clear(stage: Stage, canvas: Canvas | None, tool: str) -> list[Any]:
    return stage.show(replace(canvas or Canvas(), marks=(), corner=None), tool)
