"""The judge of descriptions, against a server on the loopback interface that answers as a chat's does, and as none should."""

import json
import logging
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from unipixel_jax.errors import UserError
from unipixel_jax.eval.judge import (
    INSTRUCTION,
    MARKS,
    MAX_BODY,
    MAX_REPLY,
    WAITS,
    ChatJudge,
    Marks,
    NoMarksError,
    read_instruction,
    read_marks,
    score_descriptions,
)
from unipixel_jax.eval.replies import KeptReplies

KEY = "sk-not-to-be-shown-0123456789"
SUBJECT, APPEARANCE, TEMPORAL, HALLUCINATION = MARKS


def spoken(*values):
    return "\n".join(f"{i}. {name}: {value}\nExplanation: it is so." for i, (name, value) in enumerate(zip(MARKS, values, strict=True), 1))


GOOD = spoken(5, 4, 3, 2)


@dataclass
class Server:
    """What it answers, one answer after the other and the last for ever: a text, or a status with a body or the address of a redirect. And what it was sent."""

    answers: list[object] = field(default_factory=lambda: [GOOD])
    requests: list[dict] = field(default_factory=list)
    headers: list[dict] = field(default_factory=list)
    delay: float = 0.0
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next(self):
        with self.lock:
            return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


class Handler(BaseHTTPRequestHandler):
    server_of: Server

    def log_message(self, *args):
        """Say nothing on stderr."""

    def do_GET(self):
        self.server_of.requests.append({"redirected": self.path})
        self.send_response(200)
        self.end_headers()

    def do_POST(self):
        ours = self.server_of
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with ours.lock:
            ours.requests.append({"path": self.path, **request})
            ours.headers.append(dict(self.headers))
        answer = ours.next()
        if callable(answer):
            answer = answer(request)
        time.sleep(ours.delay)
        if answer == "close":
            self.close_connection = True
            return
        status, body = answer if isinstance(answer, tuple) else (200, {"choices": [{"message": {"role": "assistant", "content": answer}}]})
        self.send_response(status)
        if 300 <= status < 400:
            self.send_header("Location", body)
            body = b""
        self.end_headers()
        for part in body if isinstance(body, list) else [body if isinstance(body, bytes) else json.dumps(body).encode()]:
            try:
                self.wfile.write(part)
                time.sleep(ours.delay)
            except OSError:  # the judge has hung up
                return


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    ours = Server()
    http = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"server_of": ours}))
    ours.url = f"http://127.0.0.1:{http.server_port}/v1"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield ours
    http.shutdown()
    thread.join()
    http.server_close()


def judge_of(server, **options):
    return ChatJudge(server.url, "some-model", **{"waits": (0.0,) * 4, **options})


def test_what_is_sent_is_the_protocol(server):
    marks = judge_of(server).mark("A red car.", "A blue car.\nIt turns.")
    assert marks == Marks({SUBJECT: 5.0, APPEARANCE: 4.0, TEMPORAL: 3.0, HALLUCINATION: 2.0}, GOOD)
    (request,) = server.requests
    assert request == {
        "path": "/v1/chat/completions",
        "model": "some-model",
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": INSTRUCTION}]},
            {"role": "user", "content": [{"type": "text", "text": "##Correct answer: A red car.\n##Predicted answer: A blue car.\nIt turns.\n"}]},
        ],
        "temperature": 0.7,
        "max_tokens": 800,
        "top_p": 0.95,
        "frequency_penalty": 0,
        "presence_penalty": 0,
    }
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}" and server.headers[0]["Content-Type"] == "application/json"


def test_without_a_key_none_is_sent_and_proxies_are_not_asked(server, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    judge_of(server, instruction="Mark it.").mark("a", "b")
    assert "Authorization" not in server.headers[0] and server.requests[0]["messages"][0]["content"][0]["text"] == "Mark it."


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (spoken(5, "4.5", "3.", 0), {SUBJECT: 5, APPEARANCE: 4.5, TEMPORAL: 3, HALLUCINATION: 0}),
        (f"1. {SUBJECT}: 4\\nExplanation: x\n2. {APPEARANCE}:   3/5", {SUBJECT: 4, APPEARANCE: 3}),
        (f"1. {SUBJECT}: 4\n1. {SUBJECT}: 2", {SUBJECT: 2}),
        (f"1. {SUBJECT}: 4\n5. Total: 14", {SUBJECT: 4}),
        (f"**1. {SUBJECT}**: 1\n2. {TEMPORAL}: 2", {TEMPORAL: 2}),
    ],
)
def test_marks_are_read_as_the_reference_reads_them(reply, expected):
    """The expressions are of the reference's 2.extract_re.py, whose result is written down here."""
    assert read_marks(reply) == Marks(expected, reply)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ("", "its reply '' has no marks"),
        ("I cannot compare\nthese.", "its reply 'I cannot compare these.' has no marks"),
        (f"1. {SUBJECT}: five", "has no marks"),
        (spoken(5, 4, "1.2.3", 2), "has '1.2.3' for 'Temporal Description', expected a number from 0 to 5"),
        (spoken(5, 4, "...", 2), r"has '\.\.\.' for 'Temporal Description'"),
        (spoken(5, 4, 3, "10"), "has '10' for 'Hallucination Detection', expected a number from 0 to 5"),
        (spoken(5, 4, "9" * 400, 2), "expected a number from 0 to 5"),
        (GOOD + "5. Version: 1.2.3", "has '1.2.3' for 'Version'"),
        (GOOD + "x" * MAX_REPLY, "expected at most 16384"),
    ],
)
def test_what_is_no_mark_is_an_error_of_the_reply(reply, message):
    with pytest.raises(NoMarksError, match=message):
        read_marks(reply)


@pytest.mark.parametrize("hostile", ["1. " * (MAX_REPLY // 3), "1" * MAX_REPLY, "1." + " " * (MAX_REPLY - 2), "1. :" * (MAX_REPLY // 4)])
def test_a_hostile_reply_takes_no_more_than_seconds(hostile):
    begun = time.monotonic()
    with pytest.raises(NoMarksError):
        read_marks(hostile)
    assert time.monotonic() - begun < 20


DEEP = b'{"choices":' + b"[" * 100_000
AGAIN = {
    "nonsense": ("no marks here", "has no marks"),
    "empty": ("", "its reply '' has no marks"),
    "no text": ((200, {"choices": [{"message": {"content": None}}]}), "held no reply"),
    "no choice": ((200, {"choices": []}), "held no reply"),
    "a list": ((200, [1]), "held no reply"),
    "no JSON": ((200, b"<html>"), "held no reply"),
    "nested": ((200, DEEP), "held no reply"),
    "half a character": ((200, b'{"choices": [{"message": {"content": "\\ud800"}}]}'), "held no reply"),
    "nothing": ((200, b""), "held no reply"),
    "huge": ((200, b" " * (MAX_BODY + 1)), "more than 1 MB"),
    "too many": ((429, {"error": {"message": "slow\ndown"}}), "answered with status 429, 'slow down'"),
    "broken": ((500, b"oops"), "answered with status 500$"),
    "overloaded": ((503, {"error": "text"}), "answered with status 503$"),
    "hangs up": ("close", r"the connection broke \(RemoteDisconnected\)"),
    "no number": (spoken(1, 1, 1, "1.2.3"), "has '1.2.3'"),
}


@pytest.mark.parametrize("case", AGAIN)
def test_what_may_pass_is_tried_five_times(server, case):
    answer, message = AGAIN[case]
    server.answers = [answer]
    with pytest.raises(NoMarksError, match=f"gave no marks in 5 tries; the last time .*{message}"):
        judge_of(server).mark("a", "b")
    assert len(server.requests) == 5
    server.answers = [answer, answer, GOOD]
    assert judge_of(server).mark("a", "b").reply == GOOD
    assert len(server.requests) == 8


def test_the_waits_grow(server, monkeypatch):
    slept = []
    monkeypatch.setattr(time, "sleep", lambda seconds: slept.append(seconds) if seconds else None)
    server.answers = [(500, b"")]
    with pytest.raises(NoMarksError):
        ChatJudge(server.url, "some-model").mark("a", "b")
    assert slept == list(WAITS) and sorted(WAITS) == list(WAITS) and sum(WAITS) > 60


@pytest.mark.parametrize("where", ["before the answer", "drop by drop"])
def test_a_slow_server_is_given_up(server, where):
    server.delay = 0.5 if where == "before the answer" else 0.04
    server.answers = [(200, [b" "] * 50)]
    begun = time.monotonic()
    with pytest.raises(NoMarksError, match="gave no marks in 2 tries; the last time it took too long"):
        judge_of(server, timeout=0.2, waits=(0.0,)).mark("a", "b")
    assert time.monotonic() - begun < 2


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((401, {"error": {"message": f"Incorrect API key provided: {KEY}"}}), r"refuses the key \(status 401\): set OPENAI_API_KEY"),
        ((403, b""), r"refuses the key \(status 403\)"),
        ((404, {"error": {"message": "no such model"}}), r"no answer for the model 'some-model' \(status 404, 'no such model'\): correct the address"),
        ((302, "http://localhost:1/elsewhere"), "redirects to 'http://localhost:1/elsewhere', which is not followed"),
        ((307, "/v2"), "redirects to '/v2'"),
        ((308, f"http://thief.example/?{KEY}"), r"redirects to 'http://thief\.example/\?\*\*\*'"),
    ],
)
def test_what_holds_for_all_requests_ends_the_work(server, answer, message):
    server.answers = [answer]
    with pytest.raises(UserError, match=message) as caught:
        score_descriptions(judge_of(server), [("a", "b")] * 9, workers=3)
    assert not isinstance(caught.value, NoMarksError) and KEY not in str(caught.value) and len(server.requests) == 1


def test_a_request_that_is_refused_for_its_content_is_not_repeated(server):
    server.answers = [(400, {"error": {"message": "filtered: violence"}}), GOOD]
    scores = score_descriptions(judge_of(server), [("a", "b"), ("c", "d")], workers=1)
    assert scores.failures == {0: f"the judge at {server.url} refuses the request (status 400, 'filtered: violence')"}
    assert scores.means[SUBJECT].count == 1 and len(server.requests) == 2


def test_a_server_that_is_not_there(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(UserError, match=rf"{url} cannot be reached in 2 tries \(Connection refused\): start the server") as caught:
        ChatJudge(url, "m", waits=(0.0,)).mark("a", "b")
    assert not isinstance(caught.value, NoMarksError)


def test_certificates_are_verified(server, tmp_path):
    """The server's certificate is its own, so nobody vouches for it."""
    name = str(tmp_path / "pair.pem")
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1", "-keyout", name, "-out", name + ".crt"]
    subprocess.run(made, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(name + ".crt", name)
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            connection, _ = listening.accept()
            with pytest.raises(ssl.SSLError):
                context.wrap_socket(connection, server_side=True)
            connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(UserError, match=r"certificate of https://127\.0\.0\.1:\d+ is not valid \(self-signed certificate\)"):
            ChatJudge(f"https://127.0.0.1:{listening.getsockname()[1]}", "m").mark("a", "b")
        thread.join()


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8000", "ftp://a/v1", "http://", "http://user:word@host/v1", "http://a/v1?x=1", "http://a/#b", "http://a:b/", "http://[::1", "http://a b/",
     "http://a\n/", "https://ä/", "http://" + "a" * 70 + "/", "file:///etc/passwd"],
)  # fmt: skip
def test_an_address_that_is_none(url):
    with pytest.raises(UserError, match=r"is no address of a judge: expected one such as https://api\.openai\.com/v1"):
        ChatJudge(url, "m")


def test_the_key_is_never_shown_nor_sent_in_the_open(server, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    with KeptReplies(tmp_path / "replies.jsonl") as replies:
        judge = judge_of(server, replies=replies)
        server.answers = [(500, {"error": {"message": f"{KEY} is unknown"}})]
        with pytest.raises(NoMarksError, match="is unknown") as caught:
            judge.mark("a", "b")
        server.answers = [GOOD + KEY]
        marks = judge.mark("a", "b")
        assert KEY not in f"{caught.value} {judge!r} {marks} {caplog.text}" and marks.reply == GOOD + "***"
    assert KEY not in (tmp_path / "replies.jsonl").read_text()
    with pytest.raises(UserError, match="would send the key in OPENAI_API_KEY unencrypted") as caught:
        ChatJudge("http://judge.example/v1", "m")
    assert KEY not in str(caught.value)
    for key in (KEY + "\n", f"Bearer {KEY}", KEY + "ü"):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        with pytest.raises(UserError, match="OPENAI_API_KEY holds a space") as caught:
            judge_of(server)
        assert KEY not in str(caught.value)
    monkeypatch.setenv("OPENAI_API_KEY", "4")  # a word for a server that wants none
    server.answers = [GOOD]
    assert judge_of(server).mark("a", "b").marks[APPEARANCE] == 4


def test_nothing_is_asked_twice_even_after_a_restart(server, tmp_path):
    path = tmp_path / "new" / "replies.jsonl"
    samples = [(f"caption {i}", f"prediction {i}") for i in range(20)] + [("caption 0", "prediction 0")] * 5
    server.answers = [lambda request: GOOD if "caption 7" not in json.dumps(request) else (500, b"")]
    with KeptReplies(path) as replies:
        first = score_descriptions(judge_of(server, replies=replies), samples, workers=4)
    assert len(server.requests) == 19 + 5 and list(first.failures) == [7]
    server.answers = [GOOD]
    with KeptReplies(path) as replies:
        assert len(replies) == 19
        second = score_descriptions(judge_of(server, replies=replies), samples, workers=4)
        assert len(server.requests) == 25 and not second.failures  # the failure alone was asked again
        for other in ({"instruction": "Other."}, {}):
            before = len(server.requests)
            ChatJudge(server.url, "some-model" if other else "other-model", replies=replies, **other).mark(*samples[0])
            assert len(server.requests) == before + 1
    assert all(line["reply"] == GOOD for line in map(json.loads, path.read_text().splitlines()))


def test_a_half_line_is_dropped(server, tmp_path):
    path = tmp_path / "replies.jsonl"
    with KeptReplies(path) as replies:
        judge_of(server, replies=replies).mark("a", "b")
        judge_of(server, replies=replies).mark("c", "d")
    whole = path.read_bytes()
    length = len(whole) // 2
    for end in (length, length + 1, length + 5, len(whole) - 1):
        path.write_bytes(whole[:end])
        with KeptReplies(path) as replies:
            assert len(replies) == 1
            judge_of(server, replies=replies).mark("c", "d")
        assert path.read_bytes() == whole


def test_a_killed_process_leaves_what_it_was_told(server, tmp_path):
    path, count = tmp_path / "replies.jsonl", 12
    program = (
        "import sys; from unipixel_jax.eval.judge import *; from unipixel_jax.eval.replies import KeptReplies\n"
        f"samples = [(str(i), 'p') for i in range({count})]\n"
        "with KeptReplies(sys.argv[1]) as replies: score_descriptions(ChatJudge(sys.argv[2], 'some-model', replies=replies), samples, workers=2)"
    )
    server.delay = 0.05
    process = subprocess.Popen([sys.executable, "-c", program, path, server.url])
    while not path.exists() or path.read_bytes().count(b"\n") < 4:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = path.read_bytes().count(b"\n")
    server.delay, server.requests = 0.0, []
    with KeptReplies(path) as replies:
        scores = score_descriptions(judge_of(server, replies=replies), [(str(i), "p") for i in range(count)], workers=2)
    assert 4 <= kept < count and len(server.requests) == count - kept and not scores.failures


def test_an_interrupted_command_does_not_wait_for_replies(server, tmp_path):
    program = (
        "import signal, sys; from unipixel_jax.eval.judge import *; from unipixel_jax.errors import run_command\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a process that is started in the background ignores it
        "sys.exit(run_command(lambda: score_descriptions(ChatJudge(sys.argv[1], 'm'), [('a', 'b'), ('c', 'd')], workers=2), False))"
    )
    server.delay = 5.0
    process = subprocess.Popen([sys.executable, "-c", program, server.url], stderr=subprocess.PIPE, text=True)
    while len(server.requests) < 2:
        time.sleep(0.01)
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.communicate()[1].startswith("error: interrupted") and process.returncode == 130 and time.monotonic() - begun < 3
    server.delay = 0.0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"media": "a.jpg"}\n', "line 1: expected a reply that was kept here"),
        (b'{"request": "a", "reply": "b"}\n{"request": 1, "reply": "b"}\n', "line 2"),
        (b'{"request": "a", "reply": "b"}\n\x00\x00\n', "line 2"),
        (b"[1]\n", "line 1"),
        (b"[" * 100_000 + b"\n", "line 1"),
        (b"my notes", "something other than replies"),
    ],
)
def test_a_file_of_something_else_stays_as_it_is(tmp_path, content, message):
    path = tmp_path / "notes"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        KeptReplies(path)
    assert path.read_bytes() == content


def test_replies_that_cannot_be_kept(tmp_path, full_disk, monkeypatch):
    path = tmp_path / "replies.jsonl"
    with KeptReplies(path) as replies:
        with pytest.raises(UserError, match=r"replies\.jsonl is written by another process"):
            KeptReplies(path)
        replies.add("a", "x" * 15_000)
        before = path.read_bytes()
        with full_disk(), pytest.raises(UserError, match=r"replies\.jsonl cannot be written .*make room and start again"):
            replies.add("b", "x" * 15_000)
        assert path.read_bytes() == before and replies.get("b") is None
        replies.add("c", "later")
    with KeptReplies(path) as replies:
        assert len(replies) == 2 and replies.get("c") == "later"
    with pytest.raises(UserError, match="is a folder"):
        KeptReplies(tmp_path)
    monkeypatch.setattr("unipixel_jax.eval.replies.MAX_KEPT", 100)
    with pytest.raises(UserError, match="choose another file"):
        KeptReplies(path)


class Table:
    """A judge that knows the answers."""

    def __init__(self, replies):
        self.replies, self.asked = replies, []

    def mark(self, caption, prediction):
        self.asked.append(caption)
        return read_marks(self.replies[caption])


def test_the_score_is_that_of_the_reference():
    """The numbers are those which the reference's 3.analyze_score.py gives for the same marks."""
    judge = Table({"a": spoken(5, 4, 3, 2), "b": f"1. {SUBJECT}: 2\n2. {APPEARANCE}: 1", "c": "nothing", "d": spoken(1, 1, 1, 1)})
    scores = score_descriptions(judge, [("a", "x"), ("b", "x"), ("c", "x"), ("d", "x"), ("a", "x")], workers=8)
    assert scores.to_json() == {
        SUBJECT: {"count": 4, "score": 13 / 4},
        APPEARANCE: {"count": 4, "score": 10 / 4},
        TEMPORAL: {"count": 3, "score": 7 / 3},
        HALLUCINATION: {"count": 3, "score": 5 / 3},
        "All": {"score": (13 / 4 + 10 / 4 + 7 / 3 + 5 / 3) / 4},
    }
    assert list(scores.failures) == [2] and "has no marks" in scores.failures[2]
    assert scores.marks[1] == Marks({SUBJECT: 2.0, APPEARANCE: 1.0}, judge.replies["b"]) and scores.marks[2] is None and scores.marks[4] == scores.marks[0]
    assert sorted(judge.asked) == ["a", "b", "c", "d"]


def test_means_of_nothing():
    scores = score_descriptions(Table({"b": f"1. {SUBJECT}: 2"}), [("b", "x")], workers=1)
    assert scores.means[SUBJECT].score == 2 and scores.means[TEMPORAL].score is None and scores.overall is None
    nothing = score_descriptions(Table({}), [], workers=1)
    assert nothing.overall is None and nothing.to_json()["All"] == {"score": None} and not nothing.failures
    with pytest.raises(UserError, match="0 descriptions at a time: expected at least 1"):
        score_descriptions(Table({}), [("a", "b")], workers=0)


def test_a_fault_of_the_judge_is_not_hidden():
    with pytest.raises(KeyError):
        score_descriptions(Table({}), [("a", "b")], workers=2)


def test_an_instruction_of_the_user(tmp_path):
    path = tmp_path / "judge.txt"
    path.write_text("\ufeffMark it.\n", encoding="utf-8")
    assert read_instruction(path) == "Mark it."
    for content, message in [(b" \n", "is empty"), (b"\xff", "is not UTF-8"), (b"x" * (1 << 17), "is larger than 64 kB")]:
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"{message}: expected a text that tells the judge how to mark"):
            read_instruction(path)
    os.unlink(path)
    with pytest.raises(UserError, match="does not exist"):
        read_instruction(path)


def test_the_instruction_asks_for_what_is_read():
    """A judge that follows it word for word is understood."""
    assert read_marks(INSTRUCTION[INSTRUCTION.index("reason:\n") :].replace("<mark>", "4")).marks == dict.fromkeys(MARKS, 4.0)
