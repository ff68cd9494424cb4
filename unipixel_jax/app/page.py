"""The page: its header and its tabs."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from unipixel_jax.app.limits import Limits
from unipixel_jax.app.parts import Page
from unipixel_jax.app.style import CSS, theme
from unipixel_jax.app.tabs import chat, correct, image_segmentation, live, memory, pixelqa, regions, video_segmentation

TITLE = "UniPixel"
TABS = (
    image_segmentation.build, video_segmentation.build, regions.build_image, regions.build_video, pixelqa.build, correct.build,
    live.build, chat.build, memory.build,
)  # fmt: skip
SHAPES_ONLY = (
    "This is the small model that ships with the package. It knows drawn shapes only: circles, squares, triangles and crosses in six colours. "
    "For photos and films, start the page with --model PolyU-ChenLab/UniPixel-3B."
)


def build_page(page: Page) -> gr.Blocks:
    """Build the page; it is not served yet."""
    limits = page.worker.limits
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=(min(600, limits.cache_seconds), limits.cache_seconds)) as blocks:
        gr.HTML(
            f'<div class="ux-header"><h1>{TITLE}</h1><p>Segment, track and discuss objects named in words</p>'
            f'<span class="ux-model">{escape(page.worker.name)}</span></div>'
        )
        if page.worker.shapes_only:
            gr.HTML(f'<div class="ux-banner" id="ux-banner">{escape(SHAPES_ONLY)}</div>')
        with gr.Tabs(elem_id="ux-tabs"):
            for build in TABS:
                build(page)
    return blocks.queue(max_size=limits.queue, default_concurrency_limit=8, api_open=False)


def launch_options(limits: Limits) -> dict[str, Any]:
    """The options with which Gradio serves the page: nothing is told to others, nothing but the page and its own files is served."""
    return {
        "theme": theme(),
        "css": CSS,
        "footer_links": [],
        "max_file_size": limits.megabytes << 20,
        "state_session_capacity": limits.sessions,
        "show_error": False,
        "quiet": True,
        "ssr_mode": False,
        "enable_monitoring": False,
        "mcp_server": False,
        "pwa": False,
    }
