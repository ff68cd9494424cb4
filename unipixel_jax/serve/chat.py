"""``/v1/chat/completions`` in OpenAI's form: a conversation about one photo or clip, which comes with every request."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from numpy.typing import NDArray

from unipixel_jax.infer.generate import Sampling
from unipixel_jax.infer.many import Job
from unipixel_jax.infer.prediction import Prediction
from unipixel_jax.processing.images import Content
from unipixel_jax.processing.prompts import require_words
from unipixel_jax.processing.tokenizer import SEG_TOKEN, Tokenizer
from unipixel_jax.serve.faults import Fault, no_such_model
from unipixel_jax.serve.openapi import chat_body, refusals
from unipixel_jax.serve.scheduler import Ticket
from unipixel_jax.serve.schema import ChatRequest, ChatResponse, Choice, ImagePart, Message, TextPart, Turn, VideoPart
from unipixel_jax.serve.service import EventStream, Service, segmented, usage_of
from unipixel_jax.serve.uploads import NAME, Media, decode_base64, read_json, referring

COLDEST = 0.01
"""Temperatures below this take the likeliest token, since dividing by them leaves nothing else."""
_UNFINISHED = "\ufffd"
"""What a decoder shows for a character of which not all bytes are there."""


def chat_routes(service: Service) -> APIRouter:
    """The route of a service."""
    router = APIRouter()
    stream = {"description": "The answer; with stream, chat.completion.chunk events", "content": {"text/event-stream": {"example": "data: [DONE]\n\n"}}}

    @router.post(
        "/v1/chat/completions",
        response_model=ChatResponse,
        responses=refusals() | {200: stream, 404: {"model": refusals()[400]["model"], "description": "There is no such model."}},
        openapi_extra=chat_body(),
        summary="Answer in a conversation about a photo or a clip",
        description="OpenAI's form. Photos and videos come as data: URLs; several photos are the frames of a clip. Objects of the answer are in `unipixel`.",
    )
    async def chat(request: Request) -> Any:
        asked = await read_json(request, ChatRequest)
        if asked.model != service.settings.model_name:
            raise no_such_model(asked.model, service.settings.model_name)
        ticket = Ticket(("tokens",) if asked.stream else ())
        exchange = _Exchange(service, asked, ticket, _job(service, asked, ticket))
        if not asked.stream:
            return exchange.response(await service.predict(request, exchange.job, ticket))
        events = service.events(exchange.job, ticket)
        first = await service.first(request, events)  # what cannot be answered fails here, with its status
        return EventStream(exchange.stream(first, events))

    return router


@dataclass(eq=False)
class _Exchange:
    """A request and its answer."""

    service: Service
    asked: ChatRequest
    ticket: Ticket
    job: Job

    def __post_init__(self) -> None:
        self._id, self._created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())

    def response(self, found: Prediction) -> ChatResponse:
        """The whole answer."""
        choice = Choice(message=Message(content=found.text), finish_reason=self._reason(found))
        usage, name = usage_of(self.ticket, len(found.tokens)), self.service.settings.model_name
        return ChatResponse(id=self._id, created=self._created, model=name, choices=[choice], usage=usage, unipixel=segmented(found))

    async def stream(self, first: tuple[str, Any] | None, events: AsyncGenerator[tuple[str, Any], None]) -> AsyncGenerator[str, None]:
        """The answer in chunks: words as they come, and at the end the objects."""
        words = _Words(self.service.model.loaded.tokenizer)
        yield self._chunk({"role": "assistant", "content": ""})
        try:
            if first is not None and (new := words.new(first[1])):
                yield self._chunk({"content": new})
            async with aclosing(events):
                async for _, tokens in events:
                    if new := words.new(tokens):
                        yield self._chunk({"content": new})
            found = await self.ticket.outcome
        except Fault as fault:
            yield _data(fault.body)
            return
        if rest := found.text[len(words.sent) :]:
            yield self._chunk({"content": rest})
        yield self._chunk({}, self._reason(found), unipixel=segmented(found).model_dump())
        if self.asked.stream_options is not None and self.asked.stream_options.include_usage:
            yield _data(self._head() | {"choices": [], "usage": usage_of(self.ticket, len(found.tokens)).model_dump()})
        yield "data: [DONE]\n\n"

    def _chunk(self, delta: dict[str, Any], reason: str | None = None, **more: Any) -> str:
        return _data(self._head() | {"choices": [{"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}]} | more)

    def _head(self) -> dict[str, Any]:
        return {"id": self._id, "object": "chat.completion.chunk", "created": self._created, "model": self.service.settings.model_name}

    def _reason(self, found: Prediction) -> Literal["stop", "length"]:
        assert self.job.max_new_tokens is not None
        return "length" if len(found.tokens) >= self.job.max_new_tokens else "stop"


class _Words:
    """The text of an answer that grows.

    Attributes:
        sent: what was returned so far.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.sent = ""
        self._tokenizer = tokenizer

    def new(self, tokens: NDArray[np.int32]) -> str:
        """What all tokens so far add to the text, but for a character that is not complete yet."""
        text = self._tokenizer.decode(tokens).rstrip(_UNFINISHED)
        if not text.startswith(self.sent):
            return ""
        new, self.sent = text[len(self.sent) :], text
        return new


def _data(content: Any) -> str:
    return f"data: {json.dumps(content)}\n\n"


def _job(service: Service, asked: ChatRequest, ticket: Ticket) -> Job:
    turns = asked.messages
    _check_roles(turns)
    if asked.max_tokens and asked.max_completion_tokens:
        raise Fault(422, "invalid_request", "max_tokens and max_completion_tokens are given: give one of them")
    files = _files(turns)
    media = Media(files, service.settings, asked.unipixel.sample_frames) if files else None
    texts = [_text(turn) for turn in turns]
    require_words(texts[-1])
    if media is None and asked.unipixel.references:
        raise Fault(422, "invalid_request", "there are references and no media: send the photo or video that they point at")
    words: dict[str, Any] = {"prompt": texts[-1]} if media is None else referring(texts[-1], asked.unipixel.references, media)
    history = [{"role": "system" if turn.role == "developer" else turn.role, "content": text} for turn, text in zip(turns[:-1], texts, strict=False)]
    temperature = asked.temperature or 0.0
    sampling = Sampling(temperature if temperature >= COLDEST else 0.0, asked.top_k or 0, 1.0 if asked.top_p is None else asked.top_p)
    return Job(
        media,
        sample_frames=asked.unipixel.sample_frames,
        max_new_tokens=service.limit(asked.max_completion_tokens or asked.max_tokens),
        max_objects=None if asked.unipixel.segment else 0,
        history=history,
        skip_objects=sum(text.count(SEG_TOKEN) for text in texts[:-1]),
        sampling=sampling,
        seed=uuid.uuid4().int if asked.seed is None else asked.seed,
        watcher=ticket,
        **words,
    )


def _check_roles(turns: Sequence[Turn]) -> None:
    """Refuse conversations that the chat template would write otherwise than they are meant."""
    roles = ["system" if turn.role == "developer" else turn.role for turn in turns]
    spoken = roles[1:] if roles[0] == "system" else roles
    if not spoken or spoken != ["user", "assistant"] * (len(spoken) // 2) + ["user"]:
        found = ", ".join(roles[:8])
        raise Fault(422, "invalid_request", f"the roles are {found}, expected user and assistant in turns, the user last, after a system turn or none")


def _text(turn: Turn) -> str:
    if isinstance(turn.content, str):
        return turn.content
    return "\n".join(part.text for part in turn.content if isinstance(part, TextPart))


def _files(turns: Sequence[Turn]) -> list[Content]:
    """The one video, or the photos, of a conversation, if there are any."""
    photos: list[str] = []
    videos: list[str] = []
    for turn in turns:
        for part in turn.content if not isinstance(turn.content, str) else ():
            if not isinstance(part, TextPart) and turn.role != "user":
                raise Fault(422, "invalid_request", f"a turn of the role {turn.role} holds media, expected them in the user's")
            if isinstance(part, ImagePart):
                photos.append(part.image_url.url)
            elif isinstance(part, VideoPart):
                videos.append(part.video_url.url)
    if len(videos) + bool(photos) > 1:
        found = f"{len(photos)} photos and {len(videos)} videos"
        raise Fault(422, "invalid_request", f"the conversation holds {found}, expected one video, or photos, of which several are the frames of one clip")
    for url in (*photos, *videos):
        if not url[:5].lower() == "data:":
            raise Fault(400, "address_refused", f"the address {url[:40]!r} is not opened: send the photo or video itself, as data:TYPE;base64,DATA")
    files = [Content(NAME, decode_base64(url)) for url in (*photos, *videos)]
    if any(file.size == 0 for file in files):
        raise Fault(422, "invalid_input", f"{NAME} is empty: expected a photo or a video")
    return files
