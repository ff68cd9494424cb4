"""Serves the backend: ``python _wsgi.py``, or any WSGI server with ``_wsgi:app``."""

import argparse

from label_studio_ml.api import init_app
from model import UniPixelBackend, annotator

app = init_app(UniPixelBackend)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve UniPixel to Label Studio.")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen at (default: this machine only)")
    parser.add_argument("--port", type=int, default=9090, help="the port (default: 9090)")
    options = parser.parse_args()
    annotator()  # load the model before the first request
    app.run(options.host, options.port)
