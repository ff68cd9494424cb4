"""The service under load on this machine: `unipixel-jax serve` with the small model in processes of its own, and clients in this one.

    python scripts/benchmark_service.py load [--clients 64] [--seconds 120]
    python scripts/benchmark_service.py batches [--photos 192] [--clients 32] [--repeats 5]

`load` sends photos, clips, conversations, rubbish and uploads that break off, all mixed. It checks each answer against the one that the same request got alone
before, compares what clients sent with what the service counted, and samples the service's memory. `batches` compares, in turns within one run, one client that
sends a photo when it has the answer about the one before; many clients of a service that answers one prompt at a time; and many of one that answers up to 16
together.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter, defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import psutil
from PIL import Image

from unipixel_jax.data.synthetic.language import full_name
from unipixel_jax.data.synthetic.scene import draw_scene

NEW_TOKENS = 32
SIZE = 128
WORK = ("/v1/segment", "/v1/track", "/v1/chat/completions")
MIX = {"photo": 10, "chat": 4, "stream": 2, "clip": 2, "rubbish": 2, "aborted": 2}
"""How often each kind is sent, on average."""


@dataclass
class Service:
    """A process of the service."""

    url: str
    process: subprocess.Popen[str]

    @property
    def memory(self) -> float:
        """Its resident memory in MB."""
        return float(psutil.Process(self.process.pid).memory_info().rss) / 1e6


@contextmanager
def serving(*options: str) -> Any:
    """A service with some options, that is stopped at the end."""
    command = [sys.executable, "-m", "unipixel_jax.cli", "serve", "--dtype", "float32", "--port", "0", "--devices", "1", "--max-new-tokens", str(NEW_TOKENS)]
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = ""
        while not line.startswith("ready on "):
            line = process.stdout.readline()
            if not line:
                raise SystemExit("the service did not start")
        yield Service(line.removeprefix("ready on ").strip(), process)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


@dataclass
class Case:
    """A request that is sent again and again, and what it got alone."""

    kind: str
    path: str
    content: dict[str, Any]
    wanted: Any = None


def drawn_cases(count: int) -> list[Case]:
    """Photos, conversations and clips of drawn shapes, and what is none of these."""
    cases = []
    for seed in range(count):
        scene = draw_scene(np.random.default_rng(seed))
        words, photo = f"Please segment the {full_name(scene, 0)}.", _png(scene.frames[0])
        cases.append(Case("photo", "/v1/segment", _form(words, photo)))
        url = f"data:image/png;base64,{base64.b64encode(photo).decode()}"
        turn = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": words}]}
        cases.append(Case("chat", "/v1/chat/completions", {"json": {"model": "shapes_tiny", "messages": [turn]}}))
        cases.append(Case("stream", "/v1/chat/completions", {"json": {"model": "shapes_tiny", "messages": [turn], "stream": True}}))
    for seed in range(4):
        clip = draw_scene(np.random.default_rng(100 + seed), 6)
        cases.append(Case("clip", "/v1/track", _form(f"Segment the {full_name(clip, 0)}.", *map(_png, clip.frames), sample_frames=4)))
    noise = np.random.default_rng(0).bytes(5000)
    cases.append(Case("rubbish", "/v1/segment", _form("What is it?", noise), 422))
    cases.append(Case("rubbish", "/v1/chat/completions", {"json": {"model": "shapes_tiny", "messages": [], "x": 1}}, 422))
    cases.append(Case("rubbish", "/v1/segment", {"content": b"[" * 50_000, "headers": {"Content-Type": "application/json"}}, 400))
    cases.append(Case("rubbish", "/v1/track", _form("What is it?", b"x" * (2 << 20)), 413))
    return cases


@dataclass
class Seen:
    """The results of all clients: seconds of each kind of request, and how often each kind had each outcome."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)


async def send(client: httpx.AsyncClient, case: Case, seen: Seen) -> Any:
    """Send a request and return its answer; a rubbish one's status."""
    start = time.perf_counter()
    try:
        response = await client.post(case.path, **case.content)
    except httpx.HTTPError as error:
        seen.counts[case.kind, "lost"] += 1
        print(f"lost: {case.kind}: {error!r}", flush=True)
        return None
    found: Any = response.status_code
    if response.status_code == 200:
        found = _answer(case, response)
    outcome = "wrong" if case.wanted is not None and found != case.wanted else "refused" if case.kind == "rubbish" else "answered"
    if response.status_code in (429, 503):
        outcome = "told to come again"
    seen.seconds[case.kind].append(time.perf_counter() - start)
    seen.counts[case.kind, outcome] += 1
    return found


async def abort(url: str, case: Case, seen: Seen, rng: np.random.Generator) -> None:
    """Send a part of a request, or all of it, and close the connection."""
    request = httpx.Request("POST", f"{url}{case.path}", **case.content)
    body, place = request.read(), httpx.URL(url)
    _, writer = await asyncio.open_connection(place.host, place.port)
    head = f"POST {case.path} HTTP/1.1\r\nHost: x\r\nContent-Type: {request.headers['content-type']}\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body[: int(rng.integers(1, len(body) + 1))])
    await writer.drain()
    await asyncio.sleep(float(rng.uniform(0, 0.2)))
    writer.close()
    seen.counts["aborted", "closed by the client"] += 1


async def load(service: Service, clients: int, seconds: float) -> None:
    """Put load on the service, and print what came of it."""
    cases, alone = drawn_cases(16), Seen()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=service.url, timeout=360, limits=limits, trust_env=False) as client:
        for case in cases:
            found = await send(client, case, alone)
            case.wanted = case.wanted or found
        by_kind = {kind: [case for case in cases if case.kind == kind] for kind in MIX} | {"aborted": cases}
        weights = np.array(list(MIX.values())) / sum(MIX.values())

        async def mix(number: int, end: float, seen: Seen) -> None:
            rng = np.random.default_rng(number)
            while time.perf_counter() < end:
                kind = str(rng.choice(list(MIX), p=weights))
                case = by_kind[kind][int(rng.integers(len(by_kind[kind])))]
                await (abort(service.url, case, seen, rng) if kind == "aborted" else send(client, case, seen))

        warm = Seen()  # programs for all numbers of prompts that come together are compiled here
        await asyncio.gather(*(mix(1000 + number, time.perf_counter() + seconds / 2, warm) for number in range(clients)))
        before, memory, seen = await _counted(client), [service.memory], Seen()
        start = time.perf_counter()

        async def watch() -> None:
            while True:
                await asyncio.sleep(seconds / 12)
                memory.append(service.memory)

        watching = asyncio.create_task(watch())
        await asyncio.gather(*(mix(number, start + seconds, seen) for number in range(clients)))
        took = time.perf_counter() - start
        watching.cancel()
        await asyncio.sleep(3)
        after = await _counted(client)
        health = (await client.get("/health")).json()
    _report(seen, took, memory, {status: after[status] - before[status] for status in after}, health["waiting"])


def _report(seen: Seen, took: float, memory: list[float], counted: dict[str, float], waiting: int) -> None:
    print("| kind | answered or refused as it should be | told to come again | wrong | lost | a second | p50 s | p95 s |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    sent = 0
    for kind, own in seen.seconds.items():
        count = {outcome: seen.counts[kind, outcome] for outcome in ("answered", "refused", "told to come again", "wrong", "lost")}
        good = count["answered"] + count["refused"]
        sent += len(own)
        middle, late = (float(np.quantile(own, share)) for share in (0.5, 0.95))
        bad = f"{count['told to come again']} | {count['wrong']} | {count['lost']}"
        print(f"| {kind} | {good} | {bad} | {len(own) / took:.1f} | {middle:.2f} | {late:.2f} |")
    aborted = seen.counts["aborted", "closed by the client"]
    got = sum(value for status, value in counted.items() if status != "499")
    print(f"aborted by clients: {aborted}; responses that the others got: {sent}; that the service gave: {got:.0f}, some of them to those that were gone")
    print(f"requests that the service counts: {sum(counted.values()):.0f} of {sent + aborted} sent; waiting at the end: {waiting}")
    print("statuses: " + ", ".join(f"{status}: {value:.0f}" for status, value in sorted(counted.items()) if value))
    print("resident memory in MB over the time: " + " ".join(f"{value:.0f}" for value in memory))


async def _counted(client: httpx.AsyncClient) -> dict[str, float]:
    """The finished requests of the routes that work, by status."""
    found: Counter[str] = Counter()
    for line in (await client.get("/metrics")).text.splitlines():
        name, _, value = line.rpartition(" ")
        if name.startswith("unipixel_requests_total") and any(f'route="{route}"' in name for route in WORK):
            found[name.partition('status="')[2][:3]] += float(value)
    return found


async def batches(ways: dict[str, tuple[Service, int]], photos: int, repeats: int) -> None:
    """Compare the throughput of services with some number of clients, in turns."""
    cases = [case for case in drawn_cases(photos) if case.kind == "photo"]
    rates: dict[str, list[float]] = {name: [] for name in ways}
    answers: dict[str, list[Any]] = {}
    for turn in range(-1, repeats):  # the first turn compiles: prompts come together in ever other numbers
        for name, (service, clients) in ways.items():
            gate, seen = asyncio.Semaphore(clients), Seen()
            async with httpx.AsyncClient(base_url=service.url, timeout=300, trust_env=False) as client:

                async def one(case: Case, gate: asyncio.Semaphore = gate, client: httpx.AsyncClient = client, seen: Seen = seen) -> Any:
                    async with gate:
                        return await send(client, case, seen)

                for _ in range(1 if turn >= 0 else 10):
                    start = time.perf_counter()
                    answers[name] = await asyncio.gather(*map(one, cases))
                    took = time.perf_counter() - start
            if turn >= 0:
                rates[name].append(len(cases) / took)
                print(f"{name:24} {rates[name][-1]:6.2f} photos a second", flush=True)
    medians = {name: statistics.median(own) for name, own in rates.items()}
    first = next(iter(medians.values()))
    print(f"| medians of {repeats} turns | photos a second | times the first |")
    print("| --- | --- | --- |")
    for name, rate in medians.items():
        print(f"| {name} | {rate:.1f} | {rate / first:.2f} |")
    texts = {tuple(answer[0] for answer in own) for own in answers.values()}
    print("texts " + ("equal" if len(texts) == 1 else "DIFFERENT"))


def _answer(case: Case, response: httpx.Response) -> Any:
    """Return of a response what has to be equal in both modes: the text, and the number of objects or frames."""
    if case.kind == "clip":
        lines = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: ")]
        return lines[0].get("text"), len(lines)
    if case.kind == "stream":
        chunks = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
        return "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk.get("choices", ()))
    found = response.json()
    if case.kind == "chat":
        return found["choices"][0]["message"]["content"], len(found["unipixel"]["objects"])
    return found["text"], len(found["objects"])


def _png(pixels: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(out, "PNG")
    return out.getvalue()


def _form(words: str, *contents: bytes, **options: Any) -> dict[str, Any]:
    return {"data": {"request": json.dumps({"prompt": words, **options})}, "files": [("file", ("file", content)) for content in contents]}


def main() -> None:
    """Run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("load", "batches"))
    for name, default in (("clients", None), ("seconds", 120), ("photos", 192), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    size = ("--warm-up", f"{SIZE}x{SIZE}")
    print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f} before the run", flush=True)
    if args.what == "load":
        clients = args.clients or 64
        with serving("--queue", str(2 * clients), "--max-upload-mb", "1", "--seconds", "300", *size) as service:
            asyncio.run(load(service, clients, args.seconds))
        return
    with serving("--max-batch", "1", *size) as alone, serving("--max-batch", "16", *size) as together:
        clients = args.clients or 32
        ways = {
            "one client": (alone, 1),
            f"{clients} clients, one prompt at a time": (alone, clients),
            f"{clients} clients, up to 16 prompts together": (together, clients),
        }
        asyncio.run(batches(ways, args.photos, args.repeats))


if __name__ == "__main__":
    main()
