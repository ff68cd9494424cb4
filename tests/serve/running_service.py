"""A server on a thread of the tests' process, and what requests are made of."""

import base64
import io
import socket
import threading
import time

import httpx
from PIL import Image

from unipixel_jax.data.synthetic.language import full_name
from unipixel_jax.serve.running import Server, open_socket
from unipixel_jax.serve.service import Service
from unipixel_jax.serve.settings import Settings

NEW = 24
KEY = "a-key-that-nobody-guesses"
SETTINGS = dict(
    model_name="shapes_tiny", max_batch=4, max_new_tokens=NEW, queue=32, max_upload=4 << 20, max_pixels=400_000, max_frames=50, upload_seconds=3.0,
    seconds=100.0, grace=20.0, devices=1, api_key=KEY,
)  # fmt: skip


class Running:
    """A server on a thread of this process."""

    def __init__(self, model, **settings):
        self.service = Service(model, Settings(**SETTINGS | settings))
        self.server = Server(self.service)
        self.socket = open_socket("127.0.0.1", 0)
        self.port = self.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.thread = threading.Thread(target=self.server.run, args=([self.socket],))
        self.thread.start()
        wait_for(lambda: self.server.started)

    def http(self, key=KEY):
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {key}"}, timeout=120, trust_env=False)

    def metric(self, name):
        lines = self.service.metrics.text().decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    def idle(self):
        wait_for(lambda: self.service.scheduler.waiting == 0)

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def stop(self):
        self.server.should_exit = True
        self.thread.join(60)
        assert not self.thread.is_alive()


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


def question(scene):
    return f"Segment the {full_name(scene, 0)}."


def png(pixels):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def text64(content):
    return base64.b64encode(content).decode()


def form(request, *files):
    return {"data": {"request": request}, "files": [("file", ("file", content)) for content in files]}
