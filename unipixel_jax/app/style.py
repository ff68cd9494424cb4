"""The page's colours, spacing and fonts. Objects have the colours of ``visualize.PALETTE``, as in pictures and terminals."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

from unipixel_jax.infer.visualize import PALETTE, is_bright

ACCENT = gr.themes.Color(
    name="accent", c50="#eef6fb", c100="#d7eaf6", c200="#afd5ed", c300="#7fbbe0", c400="#4a9cce", c500="#1f80b8", c600="#0b6aa3", c700="#0a5786",
    c800="#0c496e", c900="#0e3d5c", c950="#08263b",
)  # fmt: skip
FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif")


def theme() -> gr.themes.Base:
    """The page's theme, of fonts that every system has, so that nothing is loaded from elsewhere."""
    base = gr.themes.Base(
        primary_hue=ACCENT, secondary_hue=ACCENT, neutral_hue="slate", radius_size="md", spacing_size="md", text_size="md", font=FONTS,
        font_mono=("ui-monospace", "SFMono-Regular", "Menlo", "monospace"),
    )  # fmt: skip
    return base.set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        block_background_fill="white",
        block_background_fill_dark="*neutral_900",
        block_border_width="1px",
        block_border_color="*neutral_200",
        block_border_color_dark="*neutral_800",
        block_label_background_fill="white",
        block_label_background_fill_dark="*neutral_900",
        block_label_text_color="*neutral_600",
        block_label_text_color_dark="*neutral_300",
        block_label_text_weight="500",
        block_title_text_weight="500",
        block_shadow="none",
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        layout_gap="12px",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_500",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
        button_secondary_background_fill="white",
        button_secondary_background_fill_hover="*neutral_100",
        button_secondary_background_fill_dark="*neutral_800",
        button_secondary_background_fill_hover_dark="*neutral_700",
        button_secondary_border_color="*neutral_300",
        button_secondary_border_color_dark="*neutral_700",
        button_border_width="1px",
        input_background_fill="white",
        input_background_fill_dark="*neutral_900",
    )


def _chips() -> str:
    rules = []
    for number, (red, green, blue) in enumerate(PALETTE, start=1):
        ink = "#141414" if is_bright((red, green, blue)) else "#ffffff"
        rules.append(f".ux-object-{number} {{ background: rgb({red},{green},{blue}) !important; color: {ink} !important; }}")
    return "\n".join(rules)


CSS = (Path(__file__).parent / "page.css").read_text(encoding="utf-8") + _chips()
"""The page's own rules: those of its file, and the colours of objects."""
