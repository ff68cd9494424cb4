"""The command: what it refuses before it begins, how it stops, and that a kill leaves nothing behind."""

import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from made_files import video
from running_service import KEY, png, question

from unipixel_jax import UniPixel
from unipixel_jax.cli import main
from unipixel_jax.client import Client, ServiceError
from unipixel_jax.serve.running import open_socket


class Process:
    """`unipixel-jax serve` as a process of its own, on a free port, whose temporary files go to a folder."""

    def __init__(self, folder, *options):
        limits = ["--port", "0", "--max-batch", "4", "--max-new-tokens", "24", "--devices", "1"]
        command = [sys.executable, "-m", "unipixel_jax.cli", "serve", "--dtype", "float32", *limits, *options]
        self.popen = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(folder), "UNIPIXEL_API_KEY": KEY})
        self.lines = [self.popen.stdout.readline() for _ in range(2)]
        assert self.lines[0] == "model shapes_tiny, with a key; loading\n" and self.lines[1].startswith("ready on http://127.0.0.1:")
        self.url = self.lines[1].removeprefix("ready on ").strip()

    def end(self, number):
        self.popen.send_signal(number)
        rest = self.popen.communicate(timeout=60)[0]
        return self.popen.returncode, rest


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--host", "0.0.0.0"], "lets other machines in: give a key"),
        (["--host", "::"], "lets other machines in: give a key"),
        (["--port", "70000"], "--port is 70000"),
        (["--host", "no.such.host.invalid", "--no-api-key"], "cannot be listened on"),
        (["--api-key-file", "no/such/file"], "--api-key-file no/such/file cannot be read"),
        (["--warm-up", "big"], "--warm-up is 'big'"),
        (["--warm-up", "0x5"], "--warm-up is '0x5'"),
    ],
)
def test_mistakes_are_found_before_a_model_is_loaded(options, words, capsys, monkeypatch):
    monkeypatch.setattr(UniPixel, "from_pretrained", None)
    monkeypatch.delenv("UNIPIXEL_API_KEY", raising=False)
    assert main(["serve", *options]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and words in line


@pytest.mark.parametrize("key", ["short", "a key with spaces in it", "schlüssel-mit-umlaut", ""])
def test_keys_that_are_no_good(key, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(UniPixel, "from_pretrained", None)
    (tmp_path / "key").write_text(f"{key}\nsecond line\n")
    assert main(["serve", "--api-key-file", str(tmp_path / "key")]) == 1
    shown = capsys.readouterr().err
    assert "expected at least 16, of visible ASCII" in shown and (not key or key not in shown)


def test_a_port_that_is_taken(capsys, monkeypatch):
    monkeypatch.setattr(UniPixel, "from_pretrained", None)
    with open_socket("127.0.0.1", 0) as taken:
        taken.listen()
        assert main(["serve", "--port", str(taken.getsockname()[1])]) == 1
    assert "cannot be listened on (Address already in use)" in capsys.readouterr().err


@pytest.mark.slow
def test_a_signal_ends_it_after_the_requests_that_it_has_taken(tmp_path, scenes):
    process = Process(tmp_path, "--warm-up", "128x128")
    found = []

    def ask():
        with Client(process.url, KEY) as client:
            try:
                found.append(client.segment(png(scenes[0].frames[0]), question(scenes[0])).text)
            except ServiceError as error:  # it came after the signal, where a connection may be refused, or closed before its request was read
                found.append(error.code or type(error.__cause__).__name__)

    with Client(process.url, KEY) as client:
        client.segment(png(scenes[0].frames[0]), question(scenes[0]))
    asked = [threading.Thread(target=ask) for _ in range(8)]
    for thread in asked:
        thread.start()
    with Client(process.url, KEY) as client:
        while client._send("GET", "/health")["waiting"] < 3:
            pass
    assert process.end(signal.SIGTERM) == (0, "")
    for thread in asked:
        thread.join()
    answers = [text for text in found if text not in ("stopping", "ConnectError", "ReadError")]
    assert len(found) == 8 and len(answers) >= 3 and len(set(answers)) == 1 and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_kill_leaves_nothing_and_the_next_start_works(tmp_path):
    folder, content = tmp_path / "temporary", video(tmp_path / "a.mp4", 50, (320, 240))
    folder.mkdir()
    first = Process(folder)
    port = first.url.rpartition(":")[2]
    broken = []

    def follow():
        with Client(first.url, KEY) as client:
            try:
                for _ in client.track(content, "Is this <|seg|> an object?", sample_frames=2):
                    pass
            except ServiceError as error:
                broken.append(error)

    asked = [threading.Thread(target=follow) for _ in range(3)]
    for thread in asked:
        thread.start()
    with Client(first.url, KEY) as client:
        assert next(client.track(content, "Is this <|seg|> an object?", sample_frames=2)).number == 0
        assert not list(folder.iterdir())
        first.popen.send_signal(signal.SIGKILL)
    first.popen.communicate(timeout=60)
    for thread in asked:
        thread.join()
    assert len(broken) == 3 and first.popen.returncode == -signal.SIGKILL and not list(folder.iterdir())
    second = Process(folder, "--port", port)
    with Client(second.url, KEY) as client:
        photo = png(np.zeros((64, 64, 3), np.uint8))
        assert client.segment(photo, "What is it?", max_new_tokens=2).text
    assert second.end(signal.SIGINT) == (0, "") and not list(folder.iterdir())
