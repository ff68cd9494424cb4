"""Many requests at once: each is answered once, with its own answer, in batches; those that nobody waits for are given up; a stop finishes or fails each."""

import asyncio
import contextlib
import json
import threading
from dataclasses import replace

import httpx
import pytest
from running_service import KEY, NEW, Running, form, png, question, wait_for

from unipixel_jax.client import Client, ServiceError
from unipixel_jax.infer import engine, many
from unipixel_jax.serve import service
from unipixel_jax.serve.guard import Guard
from unipixel_jax.serve.service import EventStream


def slowly(monkeypatch, gate):
    """Let generation wait at a gate, so that requests gather behind it, and go on by one token at a time."""
    real = engine.decode_rows
    monkeypatch.setattr(many, "LIVE_STEPS", 1)

    def decode_rows(*args, **static):
        gate.wait(60)
        return real(*args, **static)

    monkeypatch.setattr(engine, "decode_rows", decode_rows)


def test_each_request_gets_its_own_answer_once_in_batches(running, model, scenes):
    wanted = {number: model.segment(scene.frames[0], question(scene), max_new_tokens=NEW) for number, scene in enumerate(scenes)}
    requests = [number % len(scenes) for number in range(24)]
    names = ("unipixel_batch_size_sum", "unipixel_batch_size_count", 'unipixel_requests_total{route="/v1/segment",status="200"}')
    before = {name: running.metric(name) for name in names}

    async def ask(client, number):
        scene = scenes[number]
        return await client.post("/v1/segment", **form(json.dumps({"prompt": question(scene)}), png(scene.frames[0])))

    async def ask_all():
        async with httpx.AsyncClient(base_url=running.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=100, trust_env=False) as client:
            return await asyncio.gather(*(ask(client, number) for number in requests))

    answers = asyncio.run(ask_all())
    for number, answer in zip(requests, answers, strict=True):
        assert answer.status_code == 200 and answer.json()["text"] == wanted[number].text
        assert abs(answer.json()["objects"][0]["areas"][0] - wanted[number].objects[0].areas[0]) < 20
    prompts, groups, answered = (running.metric(name) - value for name, value in before.items())
    assert answered == prompts == len(requests) and groups < prompts, "none were read together"
    running.idle()
    assert running.server.config.app.taken == 0


def test_a_full_queue_refuses_and_recovers(model, scenes, monkeypatch):
    gate = threading.Event()
    slowly(monkeypatch, gate)
    server = Running(model, queue=2)
    try:
        with Client(server.url, KEY) as client:
            found = []
            asked = [threading.Thread(target=lambda: found.append(client.segment(png(scenes[0].frames[0]), question(scenes[0])))) for _ in range(2)]
            for thread in asked:
                thread.start()
            wait_for(lambda: server.service.scheduler.waiting == 2)
            with pytest.raises(ServiceError, match="2 requests are taken") as error:
                client.segment(png(scenes[0].frames[0]), question(scenes[0]))
            assert error.value.status == 429 and error.value.retry_after == 2 and error.value.code == "queue_full"
            gate.set()
            for thread in asked:
                thread.join()
            assert len(found) == 2 and client.segment(png(scenes[0].frames[0]), question(scenes[0])).text == found[0].text
    finally:
        gate.set()
        server.stop()


def test_a_request_that_takes_too_long_is_given_up(model, scenes, monkeypatch):
    gate = threading.Event()
    slowly(monkeypatch, gate)
    server = Running(model, seconds=0.5)
    try:
        with Client(server.url, KEY) as client, pytest.raises(ServiceError, match=r"not answered within 0\.5 s") as error:
            client.segment(png(scenes[0].frames[0]), question(scenes[0]))
        assert error.value.status == 503 and error.value.retry_after == 2
        gate.set()
        server.idle()
        assert server.metric('unipixel_tokens_total{of="answer"}') == 0
    finally:
        gate.set()
        server.stop()


@pytest.mark.parametrize("route", ["/v1/segment", "/v1/track", "/v1/chat/completions"])
def test_clients_that_go_away_cost_nothing_more(running, clip, monkeypatch, route):
    gate = threading.Event()
    slowly(monkeypatch, gate)
    words = json.dumps({"prompt": question(clip), "sample_frames": 4})
    request = httpx.Request("POST", f"{running.url}{route}", **form(words, *map(png, clip.frames)))
    if route == "/v1/chat/completions":
        from unipixel_jax.client import _part

        turn = {"role": "user", "content": [*(_part(png(frame)) for frame in clip.frames), {"type": "text", "text": question(clip)}]}
        request = httpx.Request("POST", f"{running.url}{route}", json={"model": "shapes_tiny", "messages": [turn], "stream": True})
    body = request.read()
    gone, tokens = f'unipixel_requests_total{{route="{route}",status="499"}}', 'unipixel_tokens_total{of="answer"}'
    before = {name: running.metric(name) for name in (gone, tokens)}
    for _ in range(3):
        with running.connect() as connection:
            kind, size = request.headers["content-type"], len(body)
            head = f"POST {route} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Type: {kind}\r\nContent-Length: {size}\r\n\r\n"
            connection.sendall(head.encode() + body)
            wait_for(lambda: running.service.scheduler.waiting)
    wait_for(lambda: running.metric(gone) - before[gone] == 3)
    gate.set()
    running.idle()
    assert running.metric(tokens) == before[tokens]


def test_a_slow_reader_of_frames_keeps_memory_where_it_is(running, clip):
    """The clip waits for its reader; when the reader leaves, it is given up."""
    frames = [png(clip.frames[number % 6]) for number in range(20)]
    before = running.metric("unipixel_masks_total")
    with Client(running.url, KEY) as client:
        results = client.track(frames, question(clip), sample_frames=4)
        assert next(results).number == 0
        assert running.service.scheduler.waiting == 1
        results.close()
    running.idle()
    assert running.metric("unipixel_masks_total") - before < 20


@pytest.mark.parametrize("grace", [20.0, 0.3])
def test_a_stop_finishes_or_fails_each_request_once(model, scenes, monkeypatch, grace):
    gate = threading.Event()
    slowly(monkeypatch, gate)
    server = Running(model, grace=grace)
    found = []

    def ask():
        with Client(server.url, KEY) as client:
            try:
                found.append(client.segment(png(scenes[0].frames[0]), question(scenes[0])).text)
            except ServiceError as error:
                found.append(error)

    try:
        asked = [threading.Thread(target=ask) for _ in range(6)]
        for thread in asked:
            thread.start()
        wait_for(lambda: server.service.scheduler.waiting == 6)
        server.server.should_exit = True
        wait_for(lambda: server.service.scheduler.stopping)
        if grace > 1:
            gate.set()
        for thread in asked:
            thread.join(60)
        if grace > 1:
            assert len(found) == 6 and len(set(found)) == 1
        else:
            assert len(found) == 6 and {error.code for error in found} == {"stopping"} and {error.status for error in found} == {503}
        gate.set()
    finally:
        gate.set()
        server.stop()
    with pytest.raises(OSError, match="refused"):
        server.connect()


def test_an_error_of_the_model_is_a_500_without_a_traceback(running, http, scenes, monkeypatch, caplog):
    def failing(*args, **static):
        raise RuntimeError("secret of the machine")

    with monkeypatch.context() as patch:
        patch.setattr(engine, "decode_rows", failing)
        answer = http.post("/v1/segment", **form(json.dumps({"prompt": question(scenes[0])}), png(scenes[0].frames[0])))
    assert answer.status_code == 500 and answer.json()["error"]["code"] == "internal_error" and "secret" not in answer.text
    assert "secret of the machine" in caplog.text
    assert http.post("/v1/segment", **form(json.dumps({"prompt": question(scenes[0])}), png(scenes[0].frames[0]))).status_code == 200


def test_a_client_that_does_not_read_is_given_up(running, caplog):
    """It would hold its place in the queue for ever."""
    guard = running.server.config.app
    closed = []

    async def lines():
        try:
            while True:
                yield "data: x\n\n"
        finally:
            closed.append(True)

    async def app(scope, receive, send):
        await EventStream(lines())(scope, receive, send)

    async def receive():
        await asyncio.sleep(100)

    async def never(message):
        await asyncio.sleep(100 if message["type"] == "http.response.body" else 0)

    scope = {"type": "http", "method": "POST", "path": "/v1/track", "headers": [(b"authorization", f"Bearer {KEY}".encode())], "asgi": {"spec_version": "2.4"}}
    settings = replace(running.service.settings, seconds=0.2)
    stuck = Guard(app, settings, running.service.metrics, lambda: False)
    asyncio.run(asyncio.wait_for(stuck(scope, receive, never), 20))
    assert closed == [True] and stuck.taken == guard.taken == 0 and "has not read its response" in caplog.text


@pytest.mark.parametrize("ends", ["by itself", "by the client"])
def test_a_silent_stream_is_kept_alive_by_comments(monkeypatch, ends):
    monkeypatch.setattr(service, "BEAT_SECONDS", 0.05)
    closed, sent = [], []

    async def lines():
        try:
            yield "data: 1\n\n"
            await asyncio.sleep(0.4 if ends == "by itself" else 100)
            yield "data: 2\n\n"
        finally:
            closed.append(True)

    async def run():
        async with contextlib.aclosing(service._with_beats(lines())) as beats:
            async for line in beats:
                sent.append(line)
                if ends == "by the client" and len(sent) == 4:
                    break

    asyncio.run(asyncio.wait_for(run(), 20))
    assert sent[0] == "data: 1\n\n" and sent[1:3] == [": wait\n\n"] * 2 and closed == [True]
    assert (sent[-1] == "data: 2\n\n") == (ends == "by itself") and all(line[:2] in ("da", ": ") for line in sent)
