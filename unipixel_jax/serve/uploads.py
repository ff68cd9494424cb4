"""A request's photos and clips: how they come in, what is refused, and how they are opened. No path or address of a request is ever opened."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
from fastapi import Request
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from unipixel_jax.errors import TooLarge
from unipixel_jax.processing.frames import Frame, FrameSource, open_frames
from unipixel_jax.processing.images import Content, NotAnImage, OpenedContent, open_image
from unipixel_jax.processing.prompts import Box, Clicks, Mask, Point, name_regions, numbered
from unipixel_jax.processing.rle import decode_mask, mask_size
from unipixel_jax.processing.tokenizer import REF_TOKEN
from unipixel_jax.serve.faults import Fault, schema_fault
from unipixel_jax.serve.schema import BoxReference, MaskReference, MediaRequest, ObjectClicks, PointReference, RunLengths
from unipixel_jax.serve.settings import Settings

JSON, MULTIPART = "application/json", "multipart/form-data"
MAX_FILES = 256
"""Files of a multipart request at most; several are the frames of a clip."""
NAME = "the upload"
"""What messages call a photo or a clip of a request, whose own names are not repeated."""
_MOST_JSON = 16 << 20
"""Bytes of the JSON of a form at most."""
_IN_MEMORY = 1 << 20
"""Bytes of an upload that is held in memory; a larger one lies in a file without a name, which is gone with the process whatever ends it."""

T = TypeVar("T", bound=BaseModel)


@dataclass(eq=False)
class Media:
    """A request's photo or clip, which is opened when its turn comes.

    Attributes:
        files: one photo or video, or several photos that are the frames of a clip.
        settings: the limits.
        sample_frames: the most frames that the language model looks at.
        sampled: the number of frames that the language model looks at; known once it was opened.
    """

    files: Sequence[Content]
    settings: Settings
    sample_frames: int
    sampled: int = field(default=0, init=False)

    def __call__(self) -> FrameSource:
        """Open it.

        Raises:
            TooLarge: it has too many pixels or frames.
            UserError: it cannot be read.
        """
        for file in self.files:
            self._check_photo(file)
        if len(self.files) > self.settings.max_frames:
            raise self._too_many(len(self.files))
        source = open_frames(self.files[0] if len(self.files) == 1 else list(self.files))
        if len(source) > self.settings.max_frames:
            raise self._too_many(len(source))
        self.sampled = min(len(source), self.sample_frames)
        pick = source.pick
        return replace(
            source,
            frames=lambda: (self._checked(frame) for frame in source.frames()),
            pick=pick and (lambda places: [self._checked(frame) for frame in pick(places)]),
        )

    @contextmanager
    def closed_on_error(self) -> Iterator[None]:
        """Close the files where the block fails, before a job has them."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the files."""
        for file in self.files:
            if isinstance(file, OpenedContent):
                file.file.close()

    def _check_photo(self, file: Content) -> None:
        """Refuse a photo by what its header says, before anything is decoded."""
        try:
            with open_image(file) as image:
                pixels = image.width * image.height
        except NotAnImage:
            return
        if pixels > self.settings.max_pixels:
            raise self._too_large(image.height, image.width)

    def _checked(self, frame: Frame) -> Frame:
        height, width = frame.pixels.shape[:2]
        if height * width > self.settings.max_pixels:
            raise self._too_large(height, width)
        return frame

    def _too_large(self, height: int, width: int) -> TooLarge:
        return TooLarge(f"{NAME} is of {width}x{height} pixels, expected at most {self.settings.max_pixels} pixels: make it smaller")

    def _too_many(self, frames: int) -> TooLarge:
        return TooLarge(f"{NAME} has {frames} frames, expected at most {self.settings.max_frames}: cut it, or take fewer frames a second")


async def read_request(request: Request, kind: type[MediaRequest], settings: Settings) -> tuple[MediaRequest, Media]:
    """Read a request with media, as JSON with base64 in it or as multipart/form-data with files.

    Raises:
        Fault: it is neither, or does not fit the schema, or holds no media.
    """
    content_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if content_type == JSON:
        asked = await read_json(request, kind)
        texts = asked.frames or ([asked.media] if asked.media is not None else [])
        files: list[Content] = [Content(NAME, await asyncio.to_thread(decode_base64, text)) for text in texts]
    elif content_type == MULTIPART:
        asked, files = await _read_form(request, kind)
    else:
        raise Fault(415, "unsupported_media_type", f"the content type is {content_type[:60]!r}, expected {JSON} or {MULTIPART}")
    media = Media(files, settings, asked.sample_frames)
    with media.closed_on_error():
        if not files:
            raise Fault(422, "invalid_request", "the request holds no media: give media or frames in JSON, or a part 'file' in a form")
        if any(file.size == 0 for file in files):
            raise Fault(422, "invalid_input", f"{NAME} is empty: expected a photo or a video")
    return asked, media


async def read_json(request: Request, kind: type[T]) -> T:
    """Read a request whose body is JSON.

    Raises:
        Fault: it is not, or does not fit the schema.
    """
    content_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if content_type != JSON:
        raise Fault(415, "unsupported_media_type", f"the content type is {content_type[:60]!r}, expected {JSON}")
    body = await request.body()
    return await asyncio.to_thread(_validate, kind, body)


def decode_base64(text: str) -> bytes:
    """The bytes of base64, with or without ``data:...;base64,`` before it.

    Raises:
        Fault: it is an address of another kind, or no base64.
    """
    head, comma, rest = text.partition(",")
    if comma and head.lower().startswith("data:"):
        if not head.lower().endswith(";base64"):
            raise Fault(400, "invalid_data_url", "the data: URL is not in base64, expected data:TYPE;base64,DATA")
        text = rest
    elif ":" in text[:64]:
        raise Fault(400, "address_refused", "addresses and paths are not opened: send the photo or video itself, as data:TYPE;base64,DATA")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Fault(400, "invalid_base64", f"the media are not base64 ({error})") from None


def referring(prompt: str, references: Sequence[PointReference | BoxReference | MaskReference], media: Media) -> dict[str, object]:
    """The arguments of a ``Job`` for a prompt that speaks of points, boxes and masks by ``<region>``.

    Raises:
        UserError: the prompt has other regions than there are references, or a mask cannot be read.
    """
    masks = [Mask(decode_mask(one.mask.model_dump()), one.frame) for one in references if isinstance(one, MaskReference)]
    numbers = iter(range(len(masks)))
    text = name_regions(prompt, [f"[{next(numbers)}]" if isinstance(one, MaskReference) else REF_TOKEN for one in references]) if references else prompt
    pointed: list[Point | Box] = []
    for one in references:
        if isinstance(one, PointReference):
            pointed.append(Point(one.point[0], one.point[1], one.frame))
        elif isinstance(one, BoxReference):
            pointed.append(Box(one.box[0], one.box[1], one.box[2], one.box[3], one.frame))

    def remembered(size: tuple[int, int]) -> NDArray[np.bool_]:
        return np.stack([mask.on_clip(media.sampled, *size) for mask in masks])

    out: dict[str, object] = {"prompt": text, "references": pointed}
    return out | {"remembered": remembered, "ids": range(len(masks))} if masks else out


def clicking(clicks: Sequence[ObjectClicks], settings: Settings) -> list[Clicks]:
    """The clicks of a request with the numbers of their objects.

    Raises:
        TooLarge: a mask has more pixels than a photo may have.
        UserError: see ``numbered``; or a mask cannot be read.
    """

    def pixels(encoded: RunLengths | None) -> NDArray[np.bool_] | None:
        if encoded is None:
            return None
        height, width = mask_size(encoded.size)
        if height * width > settings.max_pixels:
            raise TooLarge(f"a mask is of {width}x{height} pixels, expected at most {settings.max_pixels} pixels, as a photo has them")
        return decode_mask(encoded.model_dump())

    made = []
    for one in clicks:
        box = None if one.box is None else (one.box[0], one.box[1], one.box[2], one.box[3])
        on, off = ([(x, y) for x, y in points] for points in (one.on, one.off))
        made.append(Clicks(on, off, box, pixels(one.brush), pixels(one.mask), one.frame, one.number))
    return numbered(made)


async def _read_form(request: Request, kind: type[MediaRequest]) -> tuple[MediaRequest, list[Content]]:
    form = await _parsed_form(request)
    try:
        parts = list(form.multi_items())
        words = [value for name, value in parts if name == "request" and isinstance(value, str)]
        uploads = [value for name, value in parts if name == "file" and isinstance(value, UploadFile)]
        if len(words) + len(uploads) != len(parts) or len(words) != 1:
            raise Fault(422, "invalid_request", "a form has one part 'request', which is JSON, and files in parts 'file', and nothing else")
        asked = await asyncio.to_thread(_validate, kind, words[0].encode("utf-8", "surrogatepass"))
        if asked.media is not None or asked.frames is not None:
            raise Fault(422, "invalid_request", "media and frames belong into JSON without files: leave them out of a form")
        return asked, [await _content(upload) for upload in uploads]
    except BaseException:
        await form.close()
        raise


async def _parsed_form(request: Request) -> FormData:
    """The parts of a form. Starlette's parser closes its files where a form is wrong, but not where its body breaks off, so that becomes such an error."""
    broken: list[Exception] = []

    async def chunks() -> AsyncGenerator[bytes, None]:
        try:
            async for chunk in request.stream():
                yield chunk
        except (Fault, ClientDisconnect) as error:
            broken.append(error)
            raise MultiPartException("the body broke off") from error

    try:
        return await MultiPartParser(request.headers, chunks(), max_files=MAX_FILES, max_fields=1, max_part_size=_MOST_JSON).parse()
    except MultiPartException as error:
        if broken:
            raise broken[0] from None
        raise Fault(400, "invalid_form", f"the form cannot be read: {error.message}") from None


async def _content(upload: UploadFile) -> Content:
    size = upload.file.seek(0, 2)
    upload.file.seek(0)
    if size <= _IN_MEMORY:
        data = await upload.read()
        await upload.close()
        return Content(NAME, data)
    return OpenedContent(NAME, file=upload.file)


def _validate(kind: type[T], body: bytes) -> T:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise schema_fault(error.errors(include_url=False, include_context=False, include_input=False)) from None

