"""How much one visitor of the page may ask for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Attributes:
    megabytes: the size of an uploaded file.
    pixels: of a photo, or of a frame of a clip.
    frames: of a clip.
    tokens: where an answer is cut off.
    queue: visitors that wait for the model; one more is told to come back.
    sessions: visitors whose pictures and conversations are remembered; the one that was silent for the longest time is forgotten first.
    live_seconds: how long a camera is followed in one go.
    cache_megabytes: files of uploads and results, of which the oldest are removed first.
    cache_seconds: how long such a file is kept.
    """

    megabytes: int = 200
    pixels: int = 16_000_000
    frames: int = 600
    tokens: int = 256
    queue: int = 20
    sessions: int = 32
    live_seconds: int = 120
    cache_megabytes: int = 2000
    cache_seconds: int = 3600
