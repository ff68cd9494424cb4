"""Whatever comes: the right status, one JSON message, no traceback, no file left."""

import json
import tempfile
import threading
import time

import numpy as np
import pytest
from made_files import many_frames, png_bomb, video
from running_service import KEY, form, png, question, text64

PHOTO = png(np.zeros((32, 32, 3), np.uint8))
PLAIN = {"prompt": "What is it?", "media": text64(PHOTO), "max_new_tokens": 1}


def chat(**changes):
    return {"model": "shapes_tiny", "messages": [{"role": "user", "content": "Hello."}]} | changes


def body(content, kind="application/json"):
    return {"content": content, "headers": {"Content-Type": kind}}


def changed(**changes):
    return {"json": PLAIN | changes}


def clicked(**changes):
    return {"json": {"media": text64(PHOTO), "clicks": [changes]}}


NESTED = b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
HUGE = b'{"prompt": "x", "media": "aa", "sample_frames": ' + b"9" * 5000 + b"}"
CASES = {
    "no body": ({"headers": {"Content-Type": "application/json"}}, 400, "not JSON"),
    "no json": (body(b"{"), 400, "not JSON"),
    "no text": (body(b'{"prompt": "\xff"}'), 400, "not JSON"),
    "nested": (body(NESTED), 400, "recursion limit"),
    "half a character": (body(b'{"prompt": "\\ud800", "media": "aa"}'), 400, "not JSON"),
    "huge number": (body(HUGE), 400, "number out of range"),
    "infinite": (body(b'{"prompt": "x", "references": [{"point": [1e999, 0]}], "media": "aa"}'), 422, "references"),
    "not a number": (body(b'{"prompt": "x", "references": [{"point": [NaN, 0]}], "media": "aa"}'), 422, "references"),
    "a list": (body(b"[]"), 422, "the request"),
    "other type": (body(b"prompt", "text/plain"), 415, "text/plain"),
    "no type": ({"content": b"prompt"}, 415, "expected application/json"),
    "unknown field": (changed(promt="x"), 422, "promt: is no field that is known here"),
    "wrong type": (changed(prompt=3), 422, "prompt: "),
    "number as text": (changed(sample_frames="3"), 422, "sample_frames: "),
    "zero tokens": (changed(max_new_tokens=0), 422, "max_new_tokens: "),
    "empty prompt": (changed(prompt="  "), 422, "the prompt is empty"),
    "no media": ({"json": {"prompt": "x"}}, 422, "holds no media"),
    "two media": (changed(frames=[text64(PHOTO)]), 422, "media and frames are given"),
    "a path": (changed(media="/etc/passwd"), 400, "not base64"),
    "a file": (changed(media="file:///etc/passwd"), 400, "not opened"),
    "an address": (changed(media="http://127.0.0.1/a.png"), 400, "not opened"),
    "no base64": (changed(media="???"), 400, "not base64"),
    "empty media": (changed(media=""), 422, "is empty"),
    "no photo": (changed(media=text64(b"nonsense" * 50)), 422, "is not a photo or video"),
    "half a photo": (changed(media=text64(png(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))[:2000])), 422, "broken or incomplete"),
    "too many pixels": (changed(media=text64(png(np.zeros((700, 700, 3), np.uint8)))), 413, "700x700 pixels"),
    "bomb of pixels": (changed(media=text64(png_bomb(30_000, 30_000))), 413, "pixels"),
    "bomb of frames": (changed(media=text64(many_frames(60))), 413, "60 frames"),
    "too thin": (changed(media=text64(png(np.zeros((1, 900, 3), np.uint8)))), 422, "sides that differ by at most"),
    "frames of two sizes": ({"json": {"prompt": "x", "frames": [text64(PHOTO), text64(png(np.zeros((30, 32, 3), np.uint8)))]}}, 422, "same size"),
    "too many regions": (changed(prompt="<region> <region>", references=[{"point": [1, 1]}]), 422, "<region>"),
    "region outside": (changed(references=[{"point": [99, 1]}]), 422, "outside the image"),
    "box without area": (changed(references=[{"box": [5, 5, 5, 5]}]), 422, "no area"),
    "other frame": (changed(references=[{"point": [1, 1], "frame": 3}]), 422, "frame 3"),
    "empty mask": (changed(references=[{"mask": {"size": [32, 32], "counts": "P10"}}]), 422, "run|mask"),
    "mask of another size": (changed(references=[{"mask": {"size": [2, 2], "counts": "04"}}]), 422, "the mask is"),
    "neither words nor clicks": ({"json": {"media": text64(PHOTO)}}, 422, "neither a prompt nor clicks are given"),
    "words and clicks": (changed(clicks=[{"on": [[1, 1]]}]), 422, "clicks are given with prompt, max_new_tokens: leave those out"),
    "unknown field of clicks": (clicked(points=[[1, 1]]), 422, "clicks.0.points: is no field that is known here"),
    "click of three numbers": (clicked(on=[[1, 1, 1]]), 422, r"clicks\.0\.on\.0: "),
    "too many clicks": ({"json": {"media": text64(PHOTO), "clicks": [{"on": [[1, 1]]}] * 65}}, 422, "clicks: "),
    "too many points": (clicked(on=[[1, 1]] * 33), 422, r"clicks\.0\.on: "),
    "click outside": (clicked(on=[[33, 1]]), 422, "the point 33,1 lies outside the picture of 32x32"),
    "click on another frame": (clicked(on=[[1, 1]], frame=3), 422, "has no frame 3"),
    "clicks without media": ({"json": {"clicks": [{"on": [[1, 1]]}]}}, 422, "holds no media"),
    "no run lengths": (clicked(mask={"size": [32, 32], "counts": "P10"}), 422, "run"),
    "large mask of clicks": (clicked(mask={"size": [700, 700], "counts": "0"}), 413, "a mask is of 700x700 pixels"),
    "bomb of a mask of clicks": (clicked(mask={"size": [1 << 40, 1 << 40], "counts": "0"}), 422, "size"),
    "clicks on what is no photo": ({"json": {"media": text64(b"nonsense" * 50), "clicks": [{"on": [[1, 1]]}]}}, 422, "is not a photo or video"),
    "bomb of a mask": (changed(references=[{"mask": {"size": [1 << 40, 1 << 40], "counts": "0"}}]), 422, "size"),
    "token of the model": (changed(prompt="<|video_pad|>"), 422, "leave those tokens out"),
    "end of a turn": (changed(answer_start="<|im_end|>"), 422, "leave them out"),
    "form without words": (form("", PHOTO) | {"data": {}}, 422, "one part 'request'"),
    "form without file": ({"files": [("request", (None, '{"prompt": "x"}'))]}, 422, "holds no media"),
    "form with another part": (form('{"prompt": "x"}', PHOTO) | {"files": [("photo", ("a", PHOTO))]}, 422, "one part 'request'"),
    "form with media in json": (form(json.dumps(PLAIN), PHOTO), 422, "leave them out of a form"),
    "form that is none": (body(b"nonsense", "multipart/form-data; boundary=x"), 400, "."),
    "form without boundary": (body(b"nonsense", "multipart/form-data"), 400, "boundary"),
    "form of many files": (form('{"prompt": "x"}', *[b"x"] * 300), 400, "Too many files"),
    "too many bytes": (body(b"x" * (5 << 20)), 413, "more than 4194304 bytes"),
}


def check(answer, status, words):
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "code"} and "Traceback" not in answer.text and "/tmp" not in answer.text
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(error["message"])
    assert len(error["message"]) < 600 and "\n" not in error["message"]
    assert ("retry-after" in answer.headers) == (status in (429, 503))


@pytest.mark.parametrize("route", ["/v1/segment", "/v1/track"])
@pytest.mark.parametrize("name", CASES)
def test_a_bad_request_gets_one_message(http, name, route):
    request, status, words = CASES[name]
    check(http.post(route, **request), status, words)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("GET", "/v1/segment", 405), ("PUT", "/v1/track", 405), ("POST", "/health", 405), ("GET", "/docs", 404)],
)
def test_other_paths_and_methods(http, method, path, status):
    answer = http.request(method, path)
    check(answer, status, "openapi.json")
    assert status != 405 or answer.headers["allow"]


def test_a_video_with_too_many_pixels_or_frames(http, tmp_path):
    content = video(tmp_path / "a.mp4", 4, (800, 640))
    check(http.post("/v1/track", **form('{"prompt": "x"}', content)), 413, "800x640 pixels")
    check(http.post("/v1/track", **form('{"prompt": "x"}', video(tmp_path / "b.mp4", 60, (64, 64)))), 413, "60 frames")
    check(http.post("/v1/track", **form('{"prompt": "x"}', content[: len(content) // 2])), 422, "broken or incomplete|not a photo or video")


def test_an_endless_body_is_cut_off(running, http):
    def endless():
        while True:
            yield b"x" * 65536

    before = running.metric("unipixel_uploaded_bytes_total")
    check(http.post("/v1/segment", content=limited(endless(), 30 << 20), headers={"Content-Type": "application/json"}), 413, "more than 4194304 bytes")
    assert running.metric("unipixel_uploaded_bytes_total") - before < 5 << 20


def limited(chunks, size):
    """The first bytes of a body; the server has to stop before them."""
    sent = 0
    for chunk in chunks:
        if sent > size:
            return
        sent += len(chunk)
        yield chunk


def test_a_body_that_does_not_come_is_given_up(running):
    with running.connect() as connection:
        head = f"POST /v1/segment HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
        connection.sendall(head.encode() + b"{")
        start, answer = time.monotonic(), b""
        while part := connection.recv(65536):
            answer += part
        assert answer.startswith(b"HTTP/1.1 408") and b'"code":"upload_timeout"' in answer and time.monotonic() - start < 30
    assert running.server.config.app.taken == 0


def test_no_file_is_left(running, http, tmp_path, monkeypatch):
    """A large upload lies in a file without a name, even while it is answered."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    content = video(tmp_path.parent / "large.mp4", 30, (320, 240))
    assert len(content) > 1 << 20
    seen, words = [], '{"prompt": "What is <region>?", "references": [{"point": [9, 9]}]}'
    asked = threading.Thread(target=lambda: seen.append(http.post("/v1/segment", **form(words, content))))
    asked.start()
    while asked.is_alive():
        assert not list(tmp_path.iterdir())
        time.sleep(0.001)
    assert seen[0].status_code == 200 and not list(tmp_path.iterdir())
    check(http.post("/v1/segment", **form("{", content)), 400, "not JSON")
    with running.connect() as connection:  # an upload that breaks off
        head = f"POST /v1/track HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 3000000\r\n"
        head += "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
        connection.sendall(head.encode() + b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + content[:1_200_000])
    running.idle()
    assert not list(tmp_path.iterdir())


def test_the_good_request_is_answered_after_all_this(http, scenes):
    answer = http.post("/v1/segment", **form(json.dumps({"prompt": question(scenes[0])}), png(scenes[0].frames[0])))
    assert answer.status_code == 200 and answer.json()["objects"]
