"""``/v1/segment`` and ``/v1/track``: a prompt about a photo or a clip to text and masks, or clicks in it to masks, at once or frame by frame."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse

from unipixel_jax.infer.many import Job
from unipixel_jax.infer.prediction import ClipAnswer
from unipixel_jax.processing.prompts import require_answer_start, require_words
from unipixel_jax.serve.faults import Fault
from unipixel_jax.serve.openapi import media_body, refusals
from unipixel_jax.serve.scheduler import Ticket
from unipixel_jax.serve.schema import MediaRequest, SegmentResponse
from unipixel_jax.serve.service import EVENTS, Clock, EventStream, Service, segmented, usage_of
from unipixel_jax.serve.uploads import Media, clicking, read_request, referring

TRACK_EXAMPLE = (
    'event: answer\ndata: {"model": "shapes_tiny", "text": "It is the circle<|seg|>.", "spans": [[16, 23]], "size": [128, 128]}\n\n'
    'event: frame\ndata: {"frame": 0, "seconds": 0.0, "objects": [{"number": 1, "score": 0.93, "presence": 0.99, "box": [8, 8, 20, 20], "area": 312, '
    '"mask": {"size": [128, 128], "counts": "..."}}]}\n\n'
    'event: end\ndata: {"frames": 1, "usage": {"prompt_tokens": 60, "completion_tokens": 6, "total_tokens": 66}, "timing": {"read": 0.01, "answered": 0.1, '
    '"total": 0.2}}\n\n'
)


def segment_routes(service: Service) -> APIRouter:
    """The two routes of a service."""
    router = APIRouter()

    @router.post(
        "/v1/segment",
        response_model=SegmentResponse,
        responses=refusals(),
        openapi_extra=media_body(),
        summary="Segment what a prompt asks for, or what clicks mark",
        description="Answers a prompt about a photo, a video or frames, and segments each <|seg|> of the answer on every frame. With clicks in place of the "
        "prompt, SAM 2.1 alone segments what they mark, in a clip from the first marked frame on.",
    )
    async def segment(request: Request) -> SegmentResponse:
        asked, media = await read_request(request, MediaRequest, service.settings)
        ticket = Ticket(close=media.close)
        clock = Clock(request, ticket)
        found = await service.predict(request, await _job(service, asked, media, ticket), ticket)
        return SegmentResponse(
            model=service.settings.model_name,
            text=found.text,
            usage=usage_of(ticket, len(found.tokens)),
            timing=clock.timing,
            **dict(segmented(found)),
        )

    @router.post(
        "/v1/track",
        response_class=StreamingResponse,
        responses=refusals() | {200: {"description": "Server-sent events: answer, frame ..., end", "content": {EVENTS: {"example": TRACK_EXAMPLE}}}},
        openapi_extra=media_body(),
        summary="Follow what a prompt asks for, or what clicks mark, frame by frame",
        description="As /v1/segment, but each frame's result is sent when it is there, so that neither side holds the clip. A later error is an event too.",
    )
    async def track(request: Request) -> StreamingResponse:
        asked, media = await read_request(request, MediaRequest, service.settings)
        ticket = Ticket(("answer", "frame"), media.close)
        clock = Clock(request, ticket)
        events = service.events(await _job(service, asked, media, ticket), ticket)
        first = await service.first(request, events)
        assert first is not None, "an answer comes before the end"
        return EventStream(_track(service, ticket, clock, first[1], events))

    return router


async def _track(
    service: Service, ticket: Ticket, clock: Clock, answer: ClipAnswer, events: AsyncGenerator[tuple[str, Any], None]
) -> AsyncGenerator[str, None]:
    spans = [None if span is None else list(span) for span in answer.spans]
    yield _event("answer", {"model": service.settings.model_name, "text": answer.text, "spans": spans, "size": list(answer.size)})
    frames = 0
    try:
        async with aclosing(events):
            async for _, line in events:
                frames += 1
                service.metrics.masks.inc(len(line["objects"]))
                yield _event("frame", line)
    except Fault as fault:
        yield _event("error", fault.body)
        return
    usage, timing = usage_of(ticket, len(answer.tokens)).model_dump(), clock.timing.model_dump()
    yield _event("end", {"frames": frames, "usage": usage, "timing": timing})


def _event(kind: str, data: Any) -> str:
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n"


async def _job(service: Service, asked: MediaRequest, media: Media, ticket: Ticket) -> Job:
    with media.closed_on_error():
        if asked.prompt is None:
            return Job(media, "", clicks=await asyncio.to_thread(clicking, asked.clicks, service.settings), watcher=ticket)
        require_words(asked.prompt)
        require_answer_start(asked.answer_start)
        words: dict[str, Any] = referring(asked.prompt, asked.references, media)
    limit = service.limit(asked.max_new_tokens)
    return Job(media, sample_frames=asked.sample_frames, max_new_tokens=limit, answer_start=asked.answer_start, watcher=ticket, **words)
