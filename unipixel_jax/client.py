"""A client of the service (`unipixel-jax serve`): photos, clips and words to answers and masks, without JAX.

```python
with Client("http://127.0.0.1:8000") as client:
    found = client.segment("photo.jpg", "Please segment the dog.")
    found.objects[0].mask()  # bool [height, width]
    for frame in client.track("clip.mp4", "Please segment the dog."):
        frame.objects[0].box
    client.segment("photo.jpg", clicks=[Clicks(on=[(74, 147)], off=[(20, 30)])])
    client.chat("photo.jpg", "What is at the left?").text
```
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from unipixel_jax.processing.prompts import Box, Clicks, Mask, Point
from unipixel_jax.processing.rle import decode_mask, encode_mask

Media = str | Path | bytes | Sequence[str | Path | bytes]
"""A photo or a video: a path or the bytes of a file; or several photos, which are the frames of a clip."""


class ServiceError(Exception):
    """The service refused a request.

    Attributes:
        status: the HTTP status; 0 where the connection failed, or the error came in a stream.
        code: a short name of the reason.
        retry_after: the seconds after which to try again, where the service tells them.
    """

    def __init__(self, message: str, status: int = 0, code: str = "", retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.retry_after = status, code, retry_after


@dataclass(frozen=True)
class Usage:
    """Tokens of the prompt, those of the media included, and of the answer."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


@dataclass(frozen=True)
class SegmentedObject:
    """What one ``<|seg|>`` stands for, or what clicks mark, on F frames.

    Attributes:
        number: its number, from 1 on.
        found: whether it is to be seen on any frame.
        span: where its ``<|seg|>`` begins and ends in the text; None if it stood in the prompt, or was clicked on.
        scores: probability that it is on the frame times the predicted IoU of its mask [F].
        presence: probability that it is on the frame [F].
        boxes: COCO's x, y, width, height in pixels, None where the mask is empty [F].
        areas: pixels [F].
        masks: COCO's compressed run lengths [F].
    """

    number: int
    found: bool
    span: Sequence[int] | None
    scores: Sequence[float]
    presence: Sequence[float]
    boxes: Sequence[Sequence[int] | None]
    areas: Sequence[int]
    masks: Sequence[Mapping[str, Any]] = field(repr=False)

    def mask(self, frame: int = 0) -> NDArray[np.bool_]:
        """The mask of one frame, bool [height, width]."""
        return decode_mask(self.masks[frame])


@dataclass(frozen=True)
class Answer:
    """An answer and its objects.

    Attributes:
        text: the words, special tokens included; empty with clicks.
        size: height and width of the media in pixels.
        frames: the number of each frame in the clip; with clicks, from the first marked frame on.
        objects: what its ``<|seg|>`` stand for, or what the clicks mark.
        usage: how many tokens there were.
    """

    text: str
    size: tuple[int, int]
    frames: Sequence[int]
    objects: Sequence[SegmentedObject]
    usage: Usage


@dataclass(frozen=True)
class FrameObject:
    """An object on one frame; the attributes are those of a ``SegmentedObject``, for that frame."""

    number: int
    score: float
    presence: float
    box: Sequence[int] | None
    area: int
    encoded: Mapping[str, Any] = field(repr=False)

    def mask(self) -> NDArray[np.bool_]:
        """The mask, bool [height, width]."""
        return decode_mask(self.encoded)


@dataclass(frozen=True)
class Frame:
    """What was found on one frame.

    Attributes:
        number: the frame's number in the clip.
        seconds: its time, where the file tells it.
        objects: the objects that are followed.
    """

    number: int
    seconds: float | None
    objects: Sequence[FrameObject]


class Client:
    """A connection to a service.

    Args:
        url: its address.
        api_key: its key, where it wants one.
        timeout: seconds that a request may take.
    """

    def __init__(self, url: str = "http://127.0.0.1:8000", api_key: str = "", timeout: float = 300.0) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout, trust_env=False)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    @property
    def model(self) -> str:
        """The name of the service's model."""
        return str(self._send("GET", "/v1/models")["data"][0]["id"])

    def segment(
        self, media: Media, prompt: str | None = None, references: Sequence[Point | Box | Mask] = (), *, clicks: Sequence[Clicks] = (), **options: Any
    ) -> Answer:
        """Answer a prompt about a photo or a clip, and segment each ``<|seg|>`` of the answer on every frame; or segment what clicks mark, without words.

        Args:
            media: the photo or the clip.
            prompt: any words; None with clicks.
            references: what each ``<region>`` of the prompt stands for, in its order.
            clicks: what marks the objects, each of its own or by their numbers; in a clip they are followed from the first marked frame on.
            options: ``sample_frames``, ``max_new_tokens``, ``answer_start``.

        Raises:
            ServiceError: the service refuses, or does not answer.
        """
        return _answer(self._send("POST", "/v1/segment", **_form(media, prompt, references, clicks, options)))

    def track(
        self, media: Media, prompt: str | None = None, references: Sequence[Point | Box | Mask] = (), *, clicks: Sequence[Clicks] = (), **options: Any
    ) -> Iterator[Frame]:
        """Follow what a prompt asks for, or what clicks mark, and yield each frame's result when it is there; arguments and errors are those of ``segment``."""
        with self._stream("/v1/track", **_form(media, prompt, references, clicks, options)) as response:
            ended = False
            for kind, data in _events(response):
                if kind == "error":
                    raise _error(data, 0, None)
                ended = ended or kind == "end"
                if kind == "frame":
                    yield _frame(data)
            if not ended:
                raise ServiceError("the service closed the connection before the last frame: ask again")

    def chat(self, media: Media, *turns: str, max_tokens: int | None = None, temperature: float = 0.0, seed: int | None = None) -> Answer:
        """Answer the last of some turns about a photo or a clip.

        Args:
            media: the photo or the clip.
            turns: the user's words and the model's answers in turns, the user's first and last.
            max_tokens: where the answer is cut off.
            temperature: how tokens are drawn; 0 takes the likeliest.
            seed: the seed with which they are drawn.

        Raises:
            ServiceError: the service refuses, or does not answer.
        """
        parts: list[dict[str, Any]] = [_part(file) for file in _files(media)]
        messages: list[dict[str, Any]] = [{"role": "assistant" if place % 2 else "user", "content": text} for place, text in enumerate(turns)]
        messages[0]["content"] = [*parts, {"type": "text", "text": turns[0]}]
        asked = {"model": self.model, "messages": messages, "max_tokens": max_tokens, "temperature": temperature, "seed": seed}
        found = self._send("POST", "/v1/chat/completions", json=asked)
        return _answer(found["unipixel"] | {"text": found["choices"][0]["message"]["content"], "usage": found["usage"]})

    def _send(self, method: str, path: str, **content: Any) -> dict[str, Any]:
        try:
            response = self._http.request(method, path, **content)
        except httpx.HTTPError as error:
            raise ServiceError(f"{self._http.base_url} does not answer ({error or type(error).__name__}): is the service running there?") from error
        return dict(_checked(response).json())

    def _stream(self, path: str, **content: Any) -> _Streaming:
        return _Streaming(self._http, path, content)


class _Streaming:
    """A response that is read while it comes."""

    def __init__(self, http: httpx.Client, path: str, content: dict[str, Any]) -> None:
        self._http, self._context = http, http.stream("POST", path, **content)

    def __enter__(self) -> httpx.Response:
        try:
            response = self._context.__enter__()
        except httpx.HTTPError as error:
            raise ServiceError(f"{self._http.base_url} does not answer ({error or type(error).__name__}): is the service running there?") from error
        if response.is_error:
            response.read()
            self._context.__exit__(None, None, None)
        return _checked(response)

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)


def _events(response: httpx.Response) -> Iterator[tuple[str, Any]]:
    """The server-sent events of a response."""
    kind = ""
    try:
        for line in response.iter_lines():
            name, _, value = line.partition(": ")
            if name == "event":
                kind = value
            elif name == "data":
                yield kind, json.loads(value)
    except httpx.HTTPError as error:
        raise ServiceError(f"the connection broke off ({error or type(error).__name__}): ask again") from error


def _checked(response: httpx.Response) -> httpx.Response:
    if not response.is_error:
        return response
    retry = response.headers.get("Retry-After", "")
    try:
        content = response.json()
    except ValueError:
        content = None
    raise _error(content, response.status_code, float(retry) if retry.isdigit() else None)


def _error(content: Any, status: int, retry: float | None) -> ServiceError:
    told = content.get("error", {}) if isinstance(content, dict) else {}
    return ServiceError(str(told.get("message", f"status {status}")), status, str(told.get("code", "")), retry)


def _files(media: Media) -> list[bytes]:
    several = [media] if isinstance(media, str | Path | bytes) else list(media)
    return [one if isinstance(one, bytes) else Path(one).read_bytes() for one in several]


def _form(
    media: Media, prompt: str | None, references: Sequence[Point | Box | Mask], clicks: Sequence[Clicks], options: dict[str, Any]
) -> dict[str, Any]:
    asked: dict[str, Any] = {} if prompt is None else {"prompt": prompt}
    asked |= {"references": [_reference(one) for one in references]} if references else {}
    asked |= {"clicks": [_clicks(one) for one in clicks]} if clicks else {}
    asked |= options
    return {"data": {"request": json.dumps(asked)}, "files": [("file", ("file", content)) for content in _files(media)]}


def _reference(one: Point | Box | Mask) -> dict[str, Any]:
    if isinstance(one, Point):
        return {"point": [one.x, one.y], "frame": one.frame}
    if isinstance(one, Box):
        return {"box": [one.x0, one.y0, one.x1, one.y1], "frame": one.frame}
    return {"mask": encode_mask(one.array), "frame": one.frame}


def _clicks(one: Clicks) -> dict[str, Any]:
    masks = {name: None if array is None else encode_mask(array) for name, array in (("brush", one.brush), ("mask", one.mask))}
    return {"on": one.on, "off": one.off, "box": one.box, **masks, "frame": one.frame, "number": one.number}


def _part(content: bytes) -> dict[str, Any]:
    """A photo or a video as a part of a turn. The service looks at the content itself; a video is told by the box with which MP4 files begin, or Matroska's."""
    video = content[4:8] == b"ftyp" or content[:4] == b"\x1aE\xdf\xa3"
    kind, mime = ("video_url", "video/mp4") if video else ("image_url", "image/png")
    return {"type": kind, kind: {"url": f"data:{mime};base64,{base64.b64encode(content).decode()}"}}


def _answer(found: Mapping[str, Any]) -> Answer:
    objects = [SegmentedObject(**own) for own in found["objects"]]
    height, width = found["size"]
    return Answer(found["text"], (height, width), found["frames"], objects, Usage(**found["usage"]))


def _frame(line: Mapping[str, Any]) -> Frame:
    objects = [FrameObject(own["number"], own["score"], own["presence"], own["box"], own["area"], own["mask"]) for own in line["objects"]]
    return Frame(line["frame"], line["seconds"], objects)
