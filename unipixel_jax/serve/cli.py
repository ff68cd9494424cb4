"""`unipixel-jax serve`."""

from __future__ import annotations

import argparse
import ipaddress
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from unipixel_jax.arguments import add_attention, add_loading, positive, positive_or_all
from unipixel_jax.errors import UserError, needing
from unipixel_jax.infer.from_arguments import model_of

if TYPE_CHECKING:
    from unipixel_jax.serve.settings import Settings

KEY_VARIABLE = "UNIPIXEL_API_KEY"
MIN_KEY = 16
"""Characters of a key at least, so that nobody guesses it."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Fill the parser of ``serve``."""
    parser.description = "Answer programs over HTTP: /v1/segment, /v1/track, and /v1/chat/completions in OpenAI's form (docs/service.md)."
    add_loading(parser)
    add_attention(parser)
    parser.add_argument("--model-name", metavar="NAME", help="the name by which requests ask for the model (default: the last part of MODEL)")
    _add_place(parser)
    _add_limits(parser)
    size = "compile the programs for photos of this size before requests are taken; may be repeated"
    parser.add_argument("--warm-up", action="append", default=[], metavar="WIDTHxHEIGHT", help=size)
    parser.set_defaults(run=_serve)


def _add_place(parser: argparse.ArgumentParser) -> None:
    place = parser.add_argument_group("address and keys")
    place.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="where to listen (default: 127.0.0.1, this machine only); others need a key")
    place.add_argument("--port", type=int, default=8000, metavar="N", help="the port; 0 takes a free one (default: 8000)")
    key = f"a file whose first line is the key that requests must give (default: the variable {KEY_VARIABLE}, if it is set)"
    place.add_argument("--api-key-file", type=Path, metavar="FILE", help=key)
    place.add_argument("--no-api-key", action="store_true", help="listen on another address than this machine's without a key")
    place.add_argument("--cors-origin", action="append", default=[], metavar="ORIGIN", help="let pages of this origin call the service; may be repeated")


def _add_limits(parser: argparse.ArgumentParser) -> None:
    limits = parser.add_argument_group("limits")
    limits.add_argument("--max-batch", type=positive, default=16, metavar="N", help="answers that are generated together on a device (default: 16)")
    devices = "devices that take requests, each with a copy of the weights, or as many together as share one (default: all of this machine)"
    limits.add_argument("--devices", type=positive_or_all, metavar="N|all", help=devices)
    limits.add_argument("--max-new-tokens", type=positive, default=512, metavar="N", help="where an answer is cut off at the latest (default: 512)")
    limits.add_argument("--queue", type=positive, default=64, metavar="N", help="requests that are taken and not yet answered (default: 64)")
    limits.add_argument("--max-upload-mb", type=positive, default=64, metavar="N", help="megabytes of a request (default: 64)")
    limits.add_argument("--max-megapixels", type=positive, default=32, metavar="N", help="millions of pixels of a photo or frame (default: 32)")
    limits.add_argument("--max-frames", type=positive, default=3000, metavar="N", help="frames of a clip (default: 3000)")
    limits.add_argument("--upload-seconds", type=positive, default=60, metavar="N", help="how long a request may take to come in (default: 60)")
    limits.add_argument("--seconds", type=positive, default=120, metavar="N", help="how long an answer may take, or a frame of /v1/track (default: 120)")
    limits.add_argument("--grace", type=positive, default=30, metavar="N", help="how long a stopping service goes on with what it has taken (default: 30)")


def _serve(args: argparse.Namespace) -> int:
    settings, sizes = _settings(args), [_size(text) for text in args.warm_up]
    with needing("serve", "serve"):
        import av  # noqa: F401  # videos are found to need it only when one comes

        from unipixel_jax.serve.running import open_socket, run
    listening = open_socket(args.host, args.port)
    with listening:
        host, port = listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        keys = "with a key" if settings.api_key else "without a key"
        print(f"model {settings.model_name}, {keys}; loading", flush=True)
        return run(model_of(args), settings, listening, sizes, f"http://{shown}:{port}")


def _settings(args: argparse.Namespace) -> Settings:
    from unipixel_jax.serve.settings import Settings

    key = _key(args.api_key_file)
    if not key and not args.no_api_key and not _is_loopback(args.host):
        raise UserError(
            f"--host {args.host} lets other machines in: give a key with --api-key-file or {KEY_VARIABLE}, or say --no-api-key if everybody may use the service"
        )
    name = args.model_name or (Path(args.model).name if args.model else "shapes_tiny")
    return Settings(
        model_name=name,
        max_batch=args.max_batch,
        max_new_tokens=args.max_new_tokens,
        queue=args.queue,
        max_upload=args.max_upload_mb << 20,
        max_pixels=args.max_megapixels * 1_000_000,
        max_frames=args.max_frames,
        upload_seconds=args.upload_seconds,
        seconds=args.seconds,
        grace=args.grace,
        devices=args.devices,
        api_key=key,
        cors_origins=tuple(args.cors_origin),
    )


def _key(path: Path | None) -> str:
    """The key of a file or of the environment; "" for none.

    Raises:
        UserError: the file cannot be read, or the key is too short or no visible ASCII.
    """
    where = KEY_VARIABLE if path is None else str(path)
    if path is None:
        key = os.environ.get(KEY_VARIABLE, "")
        if not key:
            return ""
    else:
        try:
            with path.open(encoding="utf-8") as file:
                key = file.readline(1000).strip()
        except (OSError, ValueError) as error:
            raise UserError(f"--api-key-file {path} cannot be read ({getattr(error, 'strerror', None) or error}): expected a file with the key") from None
    if not re.fullmatch(r"[!-~]+", key) or len(key) < MIN_KEY:
        raise UserError(f"the key in {where} has {len(key)} characters, expected at least {MIN_KEY}, of visible ASCII: make one with: openssl rand -hex 24")
    return key


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if found is None or not int(found[1]) or not int(found[2]):
        raise UserError(f"--warm-up is {text!r}, expected WIDTHxHEIGHT in pixels, for example 1280x720")
    return int(found[1]), int(found[2])
