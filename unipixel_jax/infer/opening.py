"""What a command reads: a file, a folder, a picture on the standard input, an address or a camera."""

from __future__ import annotations

import argparse
import contextlib
import http.client
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from unipixel_jax.errors import UserError
from unipixel_jax.processing.frames import Crop, FrameSource, open_address, open_frames
from unipixel_jax.processing.images import Content

MAX_DOWNLOAD = 4 << 30
"""The most bytes that are downloaded."""
MAX_STDIN = 256 << 20
"""The most bytes that are read from the standard input, which are held in memory."""
_TIMEOUT = 30.0
_CHUNK = 1 << 20


@contextlib.contextmanager
def opened(args: argparse.Namespace, crop: Crop | None, *, live: bool = False) -> Iterator[FrameSource]:
    """Open what a command's arguments name, without reading more than its first frame. What is downloaded for it is removed where the block ends.

    Args:
        args: ``media``, ``allow_url``, ``as_stored``, ``start``, ``end`` and ``frame``.
        crop: the part of each frame that is looked at.
        live: whether streams, whose length nobody knows, are taken.

    Raises:
        UserError: it cannot be read, or is an address without ``allow_url``.
    """
    with contextlib.ExitStack() as stack:
        source = _find(args, live, stack)
        if crop is not None:
            source = replace(source, crop=crop)
        source = source.between(args.start, args.end)
        yield source if args.frame is None else source.only(args.frame)


def _find(args: argparse.Namespace, live: bool, stack: contextlib.ExitStack) -> FrameSource:
    media = args.media
    if media == "-":
        return open_frames(_standard_input(), upright=not args.as_stored)
    if "://" not in media and not media.startswith("/dev/video"):
        return open_frames(media, upright=not args.as_stored)
    if "://" in media and not args.allow_url:
        raise UserError(f"{media} is an address: only files are read without --allow-url; download it first, or give the option")
    if live:
        return open_address(media)
    if urlsplit(media).scheme.lower() not in ("http", "https"):
        raise UserError(f"{media} is a live stream or a camera, whose length nobody knows: use `unipixel-jax track`")
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="unipixel-jax-"))
    return replace(open_frames(download(media, Path(folder)), upright=not args.as_stored), name=_name_of(media))


def download(address: str, folder: Path) -> Path:
    """Download a file.

    Args:
        address: its http or https address; redirections lead to such addresses only.
        folder: where it is written.

    Returns:
        Its path.

    Raises:
        UserError: the server does not give it, or it is larger than ``MAX_DOWNLOAD``.
    """
    path = folder / "media"
    try:
        with urllib.request.build_opener(_WebOnly).open(address, timeout=_TIMEOUT) as found, path.open("wb") as file:
            if int(found.headers.get("Content-Length") or 0) > MAX_DOWNLOAD:
                raise _too_large(address)
            while chunk := found.read(_CHUNK):
                if file.tell() + len(chunk) > MAX_DOWNLOAD:
                    raise _too_large(address)
                file.write(chunk)
    except UserError:
        raise
    except (OSError, ValueError, http.client.HTTPException) as error:  # URLError is an OSError
        raise UserError(f"{address} cannot be downloaded ({error}): check the address, or download it first") from error
    return path


class _WebOnly(urllib.request.HTTPRedirectHandler):
    """Follows redirections to http and https only: the library would follow those to ftp too."""

    def redirect_request(self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str) -> urllib.request.Request | None:
        if urlsplit(newurl).scheme not in ("http", "https"):
            raise UserError(f"{req.full_url} leads to {newurl}, expected an http or https address: download it first")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _too_large(address: str) -> UserError:
    return UserError(f"{address} has more than {MAX_DOWNLOAD >> 20} MB, which is the most that is downloaded: download it first")


def _name_of(address: str) -> str:
    return Path(unquote(urlsplit(address).path)).stem or "download"


def _standard_input() -> Content:
    data = sys.stdin.buffer.read(MAX_STDIN + 1)
    if not data:
        raise UserError("the standard input is empty: expected a picture, as in `unipixel-jax segment - PROMPT < photo.jpg`")
    if len(data) > MAX_STDIN:
        raise UserError(f"the standard input has more than {MAX_STDIN >> 20} MB: give the name of a file")
    return Content("stdin", data)
