"""Pictures inside HTML, which come and go with every frame and leave no file behind."""

from __future__ import annotations

import base64
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def data_uri(pixels: NDArray[np.uint8], side: int, nearest: bool = False) -> str:
    """A picture [H, W, 3], uint8, with at most ``side`` pixels along its longer side, as a JPEG in an address; ``nearest`` keeps its pixels as squares."""
    image = Image.fromarray(pixels)
    scale = min(1.0, side / max(image.size))
    if scale < 1:
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        image = image.resize(size, Image.Resampling.NEAREST if nearest else Image.Resampling.BICUBIC)
    out = BytesIO()
    image.save(out, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode('ascii')}"


def frame_html(pixels: NDArray[np.uint8], caption: str, side: int = 960) -> str:
    """A frame [H, W, 3], uint8, with a line of text that is HTML already."""
    return f'<img class="ux-frame" alt="the current frame with its objects" src="{data_uri(pixels, side)}"><div class="ux-caption">{caption}</div>'
