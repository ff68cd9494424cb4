"""The program of a Space, started in an empty folder as the Hub starts it, in a real browser."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from chromium import PATIENCE, Visitor, files_below

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_space_answers_its_example(tmp_path):
    folder, log = tmp_path / "app", tmp_path / "log.txt"
    folder.mkdir()
    shutil.copy(ROOT / "scripts" / "space" / "app.py", folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    space = {"SYSTEM": "spaces", "SPACE_ID": "owner/space", "SPACE_HOST": "owner-space.hf.space", "GRADIO_SERVER_PORT": str(port), "GRADIO_NUM_PORTS": "1"}
    environment = {name: value for name, value in os.environ.items() if name != "UNIPIXEL_MODEL"} | space | {"TMPDIR": str(tmp_path)}
    with log.open("wb") as out:
        process = subprocess.Popen([sys.executable, "app.py"], cwd=folder, stdout=out, stderr=subprocess.STDOUT, env=environment)
    visitor = None
    try:
        end = time.monotonic() + PATIENCE
        while f"the page is at http://localhost:{port}/" not in log.read_text():
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        visitor = Visitor(f"http://127.0.0.1:{port}/", os.devnull)
        visitor.open().wait(lambda: [button.click() or True for button in visitor.all("button") if "large red cross" in button.text], "there is no example")
        visitor.source("#image-segmentation-photo img")
        visitor.click("#image-segmentation-run")
        visitor.wait(lambda: "It is the large red cross" in visitor.text("#image-segmentation-answer"), "the example is not answered")
        visitor.source("#image-segmentation-result img")
    finally:
        if visitor is not None:
            visitor.driver.quit()
        process.terminate()
        process.wait(PATIENCE)
    assert sorted(files_below(tmp_path)) == [folder / "app.py", log]
