"""The sound of a video, for another file that shows the same frames."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from fractions import Fraction
from typing import Any

import av

from unipixel_jax.processing.frames import SoundSource

log = logging.getLogger(__name__)

COPIED = ("aac", "mp3")
"""The codecs whose packets go into an MP4 as they are; all others are decoded and encoded as AAC."""


class Sound:
    """The sound of a video on its way into an MP4, packet by packet beside the frames. A video that has none gives none, and one that breaks off gives less."""

    def __init__(self, source: SoundSource, container: Any) -> None:
        """Add a track to a container in which nothing has been written yet.

        Args:
            source: the video; one that is no file that FFmpeg reads has no sound.
            container: the output, opened by PyAV.
        """
        from unipixel_jax.processing.video import CONTAINERS  # the rule of processing.video: it is imported where a video is opened

        self._files = files = ExitStack()
        self._container, self._name = container, source.path.name
        self._packets: Iterator[tuple[float, Any]] = iter(())
        self._next: tuple[float, Any] | None = None
        try:
            file = files.enter_context(source.path.open("rb"))
            opened = files.enter_context(av.open(file, options={"format_whitelist": CONTAINERS}))
            if not opened.streams.audio or opened.streams.audio[0].codec_context is None:
                return
            track = opened.streams.audio[0]
            video = opened.streams.video[0]
            start = source.start + float((video.start_time or 0) * (video.time_base or 0))
            if track.codec_context.name in COPIED:
                self._packets = _copied(opened, track, container.add_stream_from_template(track), start)
            else:
                rate = track.codec_context.sample_rate
                self._packets = _encoded(opened, track, container.add_stream("aac", rate=rate, layout=track.codec_context.layout.name), start)
        except (av.error.FFmpegError, OSError, ValueError, IndexError) as error:
            self._warn(error)

    def write_until(self, seconds: float) -> None:
        """Write what sounds before a time of the clip."""
        while (item := self._peek()) is not None and item[0] < seconds:
            self._container.mux(item[1])
            self._next = None

    def close(self) -> None:
        """Let go of the video."""
        self._packets = iter(())
        self._files.close()

    def _peek(self) -> tuple[float, Any] | None:
        if self._next is None:
            try:
                self._next = next(self._packets, None)
            except (av.error.FFmpegError, ValueError) as error:
                self._warn(error)
        return self._next

    def _warn(self, error: Exception) -> None:
        self._packets = iter(())
        log.warning("%s: its sound cannot be read to the end (%s); the frames are not touched by that", self._name, error)


def _copied(source: Any, track: Any, out: Any, start: float) -> Iterator[tuple[float, Any]]:
    """The packets from a time on, counted from there, with the times at which they sound."""
    for packet in source.demux(track):
        if packet.pts is None:
            continue
        time = float(packet.pts * track.time_base) - start
        if time < 0:
            continue
        shift = round(start / track.time_base)
        packet.pts -= shift
        packet.dts = packet.pts
        packet.stream = out
        yield time, packet


def _encoded(source: Any, track: Any, out: Any, start: float) -> Iterator[tuple[float, Any]]:
    """The same, encoded anew."""
    resampler = av.AudioResampler(format=out.codec_context.format, layout=out.codec_context.layout, rate=out.codec_context.sample_rate)
    for frame in source.decode(track):
        if frame.time is None or frame.time < start:
            continue
        for part in resampler.resample(frame):
            part.pts = round(((part.time or 0) - start) * part.sample_rate)
            part.time_base = Fraction(1, part.sample_rate)
            for packet in out.encode(part):
                yield float(packet.pts * packet.time_base), packet
    for packet in out.encode(None):
        yield float(packet.pts * packet.time_base), packet
