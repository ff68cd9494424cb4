"""Streams by address on the Live tab: endless ones are followed until they are stopped, in memory that does not grow, and what gives no stream is told."""

import gc
import threading
import time
import tracemalloc
from dataclasses import replace

import jax
import pytest
from streams import streaming

from unipixel_jax.app.answer import notice
from unipixel_jax.app.live import play
from unipixel_jax.app.tabs import live
from unipixel_jax.errors import UserError
from unipixel_jax.processing import frames as reading
from unipixel_jax.processing.frames import open_address, open_frames

PAGE_OPTIONS = ["--allow-url"]


@pytest.fixture(scope="module")
def clip(examples):
    """A drawn clip, whose prompt finds an object on its first frame."""
    return examples[1][0]


@pytest.fixture(scope="module")
def streams(clip):
    with streaming([frame.pixels for frame in open_frames(clip.path)]) as own:
        yield own


@pytest.fixture
def open_page(page):
    """A page that opens addresses."""
    return replace(page, streams=True)


def closed(streams):
    """Whether the last reader has gone, soon."""
    end = time.monotonic() + 20
    while streams.open and time.monotonic() < end:
        time.sleep(0.05)
    return streams.open == 0


@pytest.mark.parametrize("kind", ["mjpeg", "ts"])
def test_an_endless_stream_is_followed_until_it_is_left(open_page, streams, clip, kind):
    shown = live.run(open_page, live.STREAM, None, f"  {streams.address(kind)} ", clip.prompt)
    for number, html in zip(range(12), shown, strict=False):
        assert f"frame {number} " in html and "ux-chip" in html
    assert streams.open == 1
    shown.close()
    assert closed(streams)


def test_a_stream_that_breaks_off_is_told_below_its_last_frame(open_page, streams, clip):
    *shown, last = live.run(open_page, live.STREAM, None, streams.address("broken"), clip.prompt)
    assert last == shown[-1] + notice("The stream has ended.") and "frame 2 " in last
    assert not any("ended" in html for html in shown)


def test_an_endless_stream_takes_the_same_memory_for_ever(page, streams, clip):
    shown = play(page.worker, open_address(streams.address("ts")), clip.prompt)
    device, host = [], []
    tracemalloc.start()
    for number, _ in zip(range(60), shown, strict=False):
        if number % 10 == 9:
            gc.collect()
            device.append(sum(array.nbytes for array in jax.live_arrays()))
            host.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    shown.close()
    assert closed(streams)
    assert max(device[1:]) - min(device[1:]) < 1 << 16
    assert max(host[1:]) - min(host[1:]) < 384 * 384 * 3, "less than a frame's pixels"


def test_others_have_the_model_while_a_frame_is_waited_for(page, streams, clip, monkeypatch):
    gate = threading.Event()
    gate.set()
    real = streams.mjpeg

    def stopping(out):
        for number, _ in enumerate(real(out)):
            yield
            if number == 3:
                gate.wait(60)

    monkeypatch.setattr(streams, "mjpeg", stopping)
    shown = play(page.worker, open_address(streams.address("mjpeg")), clip.prompt)
    next(shown)
    gate.clear()
    waiting = threading.Thread(target=lambda: [next(shown) for _ in range(3)])
    waiting.start()
    answered = page.worker.segment(clip.path, clip.prompt, photo=True)
    assert answered.prediction.objects
    gate.set()
    waiting.join(60)
    shown.close()
    assert closed(streams)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("", "there is no address yet"),
        ("/etc/passwd", "/etc/passwd is no address of a stream: expected one that begins with rtsp://"),
        ("/dev/video0", "is no address of a stream"),
        ("file:///etc/passwd", "is no address of a stream"),
        ("concat:/a.mp4|/b.mp4", "is no address of a stream"),
        ("http://127.0.0.1:9/x", "does not give a video stream .Connection refused.: check the address"),
        ("rtsp://127.0.0.1:9/x", "does not give a video stream .Connection refused.: check the address"),
        ("{}/rubbish", "does not give a video stream"),
        ("{}/nowhere", "does not give a video stream"),
        ("{}/silent", r"/silent was silent for 0\.5 s, expected a video stream"),
    ],
)
def test_what_gives_no_stream_is_told_in_one_line(open_page, streams, monkeypatch, address, words):
    monkeypatch.setattr(reading, "_SILENT_SECONDS", 0.5)
    with pytest.raises(UserError, match=words) as told:
        next(live.run(open_page, live.STREAM, None, address.format(f"http://127.0.0.1:{streams.port}"), "Please segment the red circle."))
    assert "\n" not in str(told.value)


def test_nothing_is_opened_that_is_not_allowed_or_asked_about(page, open_page, streams):
    before = len(streams.sent)
    with pytest.raises(UserError, match="this page opens no addresses: start it with --allow-url"):
        next(live.run(page, live.STREAM, None, streams.address("ts"), "Please segment the red circle."))
    with pytest.raises(UserError, match="there are no words yet"):
        next(live.run(open_page, live.STREAM, None, streams.address("ts"), " "))
    assert len(streams.sent) == before


@pytest.mark.slow
def test_a_visitor_follows_a_stream_and_stops_it(visitor, streams, clip):
    visitor.open().tab("Live")
    visitor.choose("live-kind", "Stream")
    visitor.write("live-address", streams.address("ts"))
    visitor.write("live-prompt", clip.prompt)
    visitor.click("#live-run")
    visitor.wait(lambda: "frames/s · It is the" in visitor.text("#live-now") and visitor.all("#live-now .ux-chip"), "the stream is not followed")
    assert streams.open == 1
    visitor.click("#live-stop")
    assert closed(streams), "the stream is read on after the stop"
    said = visitor.text("#live-now")
    visitor.write("live-address", streams.address("rubbish"))
    visitor.click("#live-run")
    visitor.told("does not give a video stream")
    visitor.write("live-address", "/etc/passwd")
    visitor.click("#live-run")
    visitor.told("/etc/passwd is no address of a stream")
    assert visitor.text("#live-now") == said and closed(streams)


def test_a_stream_ends_with_the_visit(visitor, streams, clip):
    visitor.open().tab("Live")
    visitor.choose("live-kind", "Stream")
    visitor.write("live-address", streams.address("mjpeg"))
    visitor.write("live-prompt", clip.prompt, enter=True)
    visitor.wait(lambda: "frame 5" in visitor.text("#live-now"), "the stream is not followed")
    assert streams.open == 1
    visitor.driver.get("about:blank")
    assert closed(streams), "the stream is read on after its visitor has gone"
