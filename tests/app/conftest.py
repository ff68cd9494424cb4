"""One page, served by the command as users start it, and one browser for all tests that need them; and the page's model for those that need neither."""

import os
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from chromium import PATIENCE, Visitor
from PIL import Image

from unipixel_jax import UniPixel
from unipixel_jax.app.examples import draw_examples
from unipixel_jax.app.files import Folder
from unipixel_jax.app.limits import Limits
from unipixel_jax.app.parts import Page
from unipixel_jax.app.worker import Worker
from unipixel_jax.processing.frames import open_frames

LIMITS = Limits(tokens=32)
FRAMES = 8
"""The number of frames of the drawn clips; the clips of the page have more."""


@pytest.fixture(scope="session")
def examples(tmp_path_factory):
    """Drawn photos, and short clips."""
    return draw_examples(tmp_path_factory.mktemp("examples"), FRAMES)


@pytest.fixture(scope="session")
def page(examples, tmp_path_factory):
    """A page with the small model, as the functions that build tabs take it."""
    os.environ["GRADIO_TEMP_DIR"] = str(tmp_path_factory.mktemp("gradio"))
    worker = Worker(lambda: UniPixel.from_pretrained(dtype="float32"), "small", True, LIMITS)
    worker.start()
    return Page(worker, Folder(tmp_path_factory.mktemp("cache"), LIMITS.cache_megabytes), *examples)


@pytest.fixture(scope="module")
def served(tmp_path_factory, request):
    """The address of the page, the process that serves it, and the folder in which it keeps files. A file of tests may name further ``PAGE_OPTIONS``."""
    folder = tmp_path_factory.mktemp("served")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder / "log.txt"
    command = [sys.executable, "-m", "unipixel_jax.cli", "app", "--port", str(port), "--no-warm-up", "--max-new-tokens", "32", "--max-frames", "40"]
    command += getattr(request.module, "PAGE_OPTIONS", [])
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, "TMPDIR": str(folder)})
    try:
        end = time.monotonic() + PATIENCE
        while "the model is ready" not in log.read_text():
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/", process, folder
    finally:
        process.terminate()
        process.wait(PATIENCE)


@pytest.fixture(scope="module")
def visitor(served, examples, tmp_path_factory):
    """The browser, whose camera shows the first drawn clip."""
    folder = tmp_path_factory.mktemp("visitor")
    camera = folder / "camera.mjpeg"
    with camera.open("wb") as file:
        for frame in open_frames(examples[1][0].path):
            Image.fromarray(np.asarray(frame.pixels)).save(file, "JPEG", quality=92)
    own = Visitor(served[0], camera)
    yield own
    own.driver.quit()
