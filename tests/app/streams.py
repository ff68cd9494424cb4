"""Streams on this machine's own address, most of which go on until nobody reads them any more."""

import io
import itertools
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import av
from PIL import Image

BOUNDARY = "frame"
PICTURES, PLAIN = f"multipart/x-mixed-replace; boundary={BOUNDARY}", "text/plain"
KINDS = {"mjpeg": PICTURES, "broken": PICTURES, "ts": "video/mp2t", "rubbish": PLAIN, "silent": PLAIN}
"""The content type of each kind of stream, a method of ``Streams``."""


class Streams:
    """Streams of some frames over HTTP.

    Attributes:
        sent: how many frames each reader was sent, in the order of their coming.
        open: how many readers there are.
    """

    def __init__(self, frames):
        self.frames, self.sent, self.open = frames, [], 0
        self.ended = threading.Event()
        self._lock = threading.Lock()

    def address(self, kind):
        return f"http://127.0.0.1:{self.port}/{kind}"

    def mjpeg(self, out):
        """The pictures of a network camera, one JPEG after the other."""
        yield from self._pictures(out, itertools.cycle(self.frames))

    def broken(self, out):
        """A network camera that breaks off in the middle of a picture."""
        yield from self._pictures(out, self.frames[:3])
        out.write(f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: 9999\r\n\r\n".encode())

    def _pictures(self, out, frames):
        for frame in frames:
            picture = io.BytesIO()
            Image.fromarray(frame).save(picture, "JPEG")
            out.write(f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {picture.tell()}\r\n\r\n".encode() + picture.getvalue() + b"\r\n")
            yield

    def ts(self, out):
        """An MPEG transport stream."""
        height, width = self.frames[0].shape[:2]
        with av.open(out, "w", format="mpegts") as container:
            stream = container.add_stream("mpeg2video", rate=25)
            stream.width, stream.height, stream.pix_fmt, stream.gop_size = width, height, "yuv420p", 5
            for frame in itertools.cycle(self.frames):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
                yield

    def rubbish(self, out):
        out.write(b"this is no stream" * 1000)
        yield from ()

    def silent(self, out):
        self.ended.wait(3)  # longer than tests let readers wait
        yield from ()

    def serve(self, kind, out):
        with self._lock:
            self.open, reader = self.open + 1, len(self.sent)
            self.sent.append(0)
        try:
            for _ in getattr(self, kind)(out):
                if self.ended.is_set():
                    return
                self.sent[reader] += 1
        except (OSError, av.error.FFmpegError):
            pass  # nobody reads it any more
        finally:
            with self._lock:
                self.open -= 1


@contextmanager
def streaming(frames):
    """Serve streams of frames [H, W, 3] while the block runs."""
    streams = Streams(frames)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            kind = self.path.lstrip("/")
            if kind not in KINDS:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Type", KINDS[kind])
            self.end_headers()
            streams.serve(kind, self.wfile)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    streams.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield streams
    finally:
        streams.ended.set()
        server.shutdown()
        server.server_close()
