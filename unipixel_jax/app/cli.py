"""`unipixel-jax app`: the page in a browser."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from unipixel_jax.arguments import SMALL_MODEL, add_attention, add_loading, positive
from unipixel_jax.errors import UserError, needing
from unipixel_jax.infer.from_arguments import model_of

if TYPE_CHECKING:
    from unipixel_jax.app.worker import Worker

def configure(parser: argparse.ArgumentParser) -> None:
    """Fill the parser of ``app``."""
    parser.description = "Open a page in the browser on which all that the model can do is tried: words, points, boxes, brush, clips, cameras, conversations."
    add_loading(parser)
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="where to listen (default: 127.0.0.1, which this machine alone reaches)")
    parser.add_argument("--port", type=int, default=7860, metavar="N", help="the port to listen on (default: 7860)")
    parser.add_argument("--share", action="store_true", help="also ask Gradio's servers for a public address, which anybody can open who knows it")
    parser.add_argument("--allow-url", action="store_true", help="let visitors give addresses of streams, which this machine then opens")
    parser.add_argument("--queue", type=positive, default=20, metavar="N", help="visitors that may wait; one more is told to come back (default: 20)")
    parser.add_argument("--max-frames", type=positive, default=600, metavar="N", help="frames of an uploaded clip (default: 600)")
    parser.add_argument("--max-pixels", type=positive, default=16_000_000, metavar="N", help="pixels of an uploaded photo or frame (default: 16,000,000)")
    parser.add_argument("--max-megabytes", type=positive, default=200, metavar="N", help="size of an upload (default: 200)")
    parser.add_argument("--max-new-tokens", type=positive, default=256, metavar="N", help="where an answer is cut off (default: 256)")
    parser.add_argument("--no-warm-up", action="store_true", help="compile nothing before the first visitor asks")
    add_attention(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    if not 1 <= args.port <= 65535:
        raise UserError(f"--port is {args.port}, expected 1 to 65535")
    with needing("app", "unipixel-jax app"):
        import gradio  # noqa: F401
    with cache_folder() as folder:
        _serve(args, folder)
    return 0


@contextmanager
def cache_folder() -> Iterator[Path]:
    """A folder, which goes when the block ends, with a folder ``cache`` for uploads and results. What a killed page left is removed by the next one."""
    from unipixel_jax.core.files import aside_of, remove_abandoned

    place = Path(tempfile.gettempdir())
    remove_abandoned(place)
    folder = aside_of(place / "unipixel-jax-app")
    (folder / "cache").mkdir(parents=True)
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "cache")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def worker_of(args: argparse.Namespace) -> Worker:
    """The model that a command's arguments name, which is not loaded yet."""
    from unipixel_jax.app.limits import Limits
    from unipixel_jax.app.worker import Worker

    small = args.model in (None, SMALL_MODEL)
    loading = argparse.Namespace(**vars(args) | {"model": None}) if small else args
    limits = Limits(
        megabytes=args.max_megabytes, pixels=args.max_pixels, frames=args.max_frames, tokens=args.max_new_tokens, queue=args.queue,
    )  # fmt: skip

    return Worker(lambda: model_of(loading), "small model of drawn shapes" if small else Path(args.model).name or args.model, small, limits)


def _is_a_fault(record: logging.LogRecord) -> bool:
    """Whether a record of the server is to be shown. A visitor who leaves during an upload is none of its faults, though it logs a traceback."""
    return record.exc_info is None or type(record.exc_info[1]).__name__ != "ClientDisconnect"


def _serve(args: argparse.Namespace, folder: Path) -> None:
    """Open the page, load the model behind it, and serve until Ctrl-C."""
    import gradio

    from unipixel_jax.app.examples import draw_examples
    from unipixel_jax.app.files import Folder
    from unipixel_jax.app.page import build_page, launch_options
    from unipixel_jax.app.parts import Page

    worker = worker_of(args)
    photos, clips = draw_examples(folder / "examples")
    # Examples are served where they lie: copies in the cache would go with its old files.
    gradio.set_static_paths([folder / "examples"])
    page = Page(worker, Folder(folder / "cache", worker.limits.cache_megabytes), photos, clips, args.allow_url)
    blocks = build_page(page)
    logging.getLogger("uvicorn.error").addFilter(_is_a_fault)
    try:
        _, local, public = blocks.launch(
            server_name=args.host, server_port=args.port, share=args.share, prevent_thread_lock=True, **launch_options(worker.limits)
        )
    except OSError as error:
        raise UserError(f"{args.host}:{args.port} cannot be listened on ({error.strerror or error}): choose another --port or --host") from error
    try:
        for address in filter(None, (local, public)):
            print(f"the page is at {address}", flush=True)
        if args.share and public is None:
            print("no public address could be had from Gradio's servers: the page goes on without one", file=sys.stderr, flush=True)
        worker.start()
        if not args.no_warm_up:
            worker.warm_up()
        print("the model is ready; Ctrl-C ends the page", flush=True)
        threading.Event().wait()
    finally:
        blocks.close(verbose=False)
