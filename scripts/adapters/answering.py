"""The adapters of other harnesses share this: each of a harness's requests becomes one ``Job``, and its answer comes back in the order of the requests."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax

from unipixel_jax import UniPixel
from unipixel_jax.errors import UserError
from unipixel_jax.infer.loading import EMBEDDED
from unipixel_jax.infer.many import ROWS, Job
from unipixel_jax.infer.predictor import MAX_NEW_TOKENS, SAMPLE_FRAMES
from unipixel_jax.processing.frames import open_frames


@dataclass(frozen=True, eq=False)
class Part:
    """A piece of a harness's message.

    Attributes:
        kind: "text", "image" or "video"; what else a harness knows, such as "audio", is refused.
        value: the words; or an image or a path, as ``UniPixel.segment`` takes them.
        role: whose piece it is.
        start, end: the part of a video in seconds; None for its beginning and its end.
    """

    kind: str
    value: Any
    role: Literal["system", "user", "assistant"] = "user"
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True, eq=False)
class Request:
    """A request of a harness.

    Attributes:
        parts: its message in order.
        until: strings before the first of which the answer ends.
        max_new_tokens: where the answer is cut off; None for the model's setting.
        sample_frames: how many frames of a video the language model looks at; None for the model's setting.
    """

    parts: Sequence[Part]
    until: Sequence[str] = ()
    max_new_tokens: int | None = None
    sample_frames: int | None = None


class Answerer:
    """A model that answers requests.

    Args:
        pretrained: any name that ``UniPixel.from_pretrained`` takes; the small model that ships with the package where none is given.
        dtype: see ``UniPixel.from_pretrained``.
        rows: answers that are generated together on a device.
        devices: how many devices take requests, each with a copy of the weights; None for all of this machine.
        sample_frames, max_new_tokens: for requests that say nothing of it; the reference's defaults.
        min_pixels, max_pixels: see ``UniPixel.segment``.

    Raises:
        UserError: the machine has fewer devices, or the reasons of ``UniPixel.from_pretrained``.
    """

    def __init__(
        self,
        pretrained: str = str(EMBEDDED),
        *,
        dtype: str | None = None,
        rows: int = ROWS,
        devices: int | None = None,
        sample_frames: int = SAMPLE_FRAMES,
        max_new_tokens: int = MAX_NEW_TOKENS,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ) -> None:
        own = jax.local_devices()
        if devices is not None and not 1 <= devices <= len(own):
            raise UserError(f"devices is {devices}, expected 1 to {len(own)}, which this machine has")
        self._model = UniPixel.from_pretrained(pretrained, dtype)
        self._rows, self._devices = rows, own[:devices]
        self._sample_frames, self._max_new_tokens = sample_frames, max_new_tokens
        self._min_pixels, self._max_pixels = min_pixels, max_pixels

    def answer(self, requests: Iterable[Request]) -> list[str]:
        """Answer requests together. They are taken as they are needed, so that the images of a whole benchmark are never in memory at once.

        Returns:
            The text of each request's answer, in their order, without the words that began it (an assistant's at the end of the message).

        Raises:
            UserError: the message of a request is not of one image or one video, or has turns before the last; or its media cannot be read. A benchmark with
                a question left out would have another score, so one such request ends the run.
        """
        asked: list[tuple[Request, Job]] = []
        answers: dict[int, str] = {}

        def jobs() -> Iterator[Job]:
            for number, request in enumerate(requests):
                job = self._job(request, str(number))
                asked.append((request, job))
                yield job

        outcomes = self._model.segment_many(jobs(), rows=self._rows, max_new_tokens=self._max_new_tokens, devices=self._devices)
        with contextlib.closing(outcomes):
            for outcome in outcomes:
                if outcome.prediction is None:
                    raise UserError(f"request {outcome.job.id}: {outcome.reason}")
                number = int(outcome.job.id)
                request, job = asked[number]
                answers[number] = _until(outcome.prediction.text.removeprefix(job.answer_start), request.until)
        return [answers[number] for number in range(len(asked))]

    def _job(self, request: Request, name: str) -> Job:
        shown = [part for part in request.parts if part.kind != "text"]
        if [part.kind for part in shown] not in (["image"], ["video"]):
            kinds = ", ".join(part.kind for part in shown) or "text alone"
            raise UserError(f"request {name} shows {kinds}: UniPixel answers about one image or one video, so leave out benchmarks that show anything else")
        (media,) = shown
        *before, last = [part for part in request.parts if part.kind == "text"] or [Part("text", "")]
        if any(part.role == "assistant" for part in before):
            raise UserError(f"request {name} has answers of earlier turns: one question is answered at a time, so leave out conversations and examples")
        answer_start = last.value if last.role == "assistant" else ""
        asked = before if answer_start else [*before, last]
        return Job(
            media.value if media.start is None and media.end is None else lambda: open_frames(media.value).between(media.start, media.end),
            "\n".join(part.value for part in asked),
            id=name,
            sample_frames=self._sample_frames if request.sample_frames is None else request.sample_frames,
            answer_start=answer_start,
            min_pixels=self._min_pixels,
            max_pixels=self._max_pixels,
            max_new_tokens=request.max_new_tokens,
            max_objects=0,
        )


def _until(text: str, stops: Sequence[str]) -> str:
    for stop in filter(None, stops):
        text = text.split(stop, 1)[0]
    return text
