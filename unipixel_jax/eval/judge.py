"""VideoRefer-Bench-D: a language model compares each description with the one that a person wrote, and gives it four marks.

The judge is any server with OpenAI's interface for chats. What is sent and how marks are read from a reply are a protocol, and so as in the reference
(unipixel/eval/videorefer_bench_d); the instruction is our own unless the user gives another. Marks by another model or instruction are not comparable.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import logging
import os
import queue
import re
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Protocol
from urllib.parse import urlsplit

from unipixel_jax.core.files import require_regular_file
from unipixel_jax.errors import UserError, one_line
from unipixel_jax.eval.replies import KeptReplies

log = logging.getLogger(__name__)

MARKS = ("Subject Correspondence", "Appearance Description", "Temporal Description", "Hallucination Detection")
"""The names of the four marks, as they stand in a reply (the reference's 3.analyze_score.py)."""

BEST = 5
"""The best mark; the worst is 0."""

INSTRUCTION = """\
You compare two descriptions of one object in a video. The text after "##Correct answer" was written by a person who saw the video, and is true. The text \
after "##Predicted answer" was written by a program that is being tested. Say how well the predicted answer agrees with the correct one, in four respects:
1. Subject Correspondence: do both speak of the same object?
2. Appearance Description: do its colour, shape, size, texture, clothing and other visible properties agree?
3. Temporal Description: do its movements, its actions and their order agree?
4. Hallucination Detection: is everything that the predicted answer claims borne out by the correct answer? What it invents lowers this mark.
Give each a whole number from 0 (nothing agrees) to 5 (everything agrees). Reply with four numbered lines, and after each a line that gives your reason:
1. Subject Correspondence: <mark>
Explanation: <reason>
2. Appearance Description: <mark>
Explanation: <reason>
3. Temporal Description: <mark>
Explanation: <reason>
4. Hallucination Detection: <mark>
Explanation: <reason>"""
"""What the judge is told, in our own words."""

KEY_VARIABLE = "OPENAI_API_KEY"
"""The environment variable with the key of the judge's server. Without it no key is sent, as servers on the user's own machine want it."""

WAITS = (2.0, 5.0, 15.0, 40.0)
"""Seconds before the second to fifth try. Together they are more than the minute in which servers count requests."""

TIMEOUT = 120.0
"""Seconds that a server may take for a reply."""

MAX_BODY = 1 << 20
"""The most bytes of an answer of the server. A reply of 800 tokens has some thousands."""
MAX_REPLY = 1 << 14
"""The most characters of a reply. The pattern's time grows with their square, to two seconds for the worst reply of this length."""
MAX_INSTRUCTION = 1 << 16
"""The most bytes of a file with an instruction."""

_PARAMETERS = {"temperature": 0.7, "max_tokens": 800, "top_p": 0.95, "frequency_penalty": 0, "presence_penalty": 0}
_PATTERN = re.compile(r"\d+\.\s+(.*?):\s+([\d.]+)")
"""A mark in a reply (the reference's 2.extract_re.py)."""
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_SECRET = 8
"""The fewest characters of a key that is kept out of what is shown. Servers on the user's own machine are given words such as "none"."""
_OF_ONE_REQUEST = (400, 413, 422)
"""Statuses by which servers refuse one request for its content, as a filter of theirs does, and may accept the next."""


class NoMarksError(UserError):
    """The judge gave no marks for a description, though it may give some for others."""


@dataclass(frozen=True)
class Marks:
    """What a judge says of one description.

    Attributes:
        marks: the marks from 0 to 5 by their names in ``MARKS``. Some may be missing, since a reply need not have all of them.
        reply: the text from which they were read.
    """

    marks: Mapping[str, float]
    reply: str


class Judge(Protocol):
    """Whoever compares a description with the true one."""

    def mark(self, caption: str, prediction: str) -> Marks:
        """Return the marks of a prediction; called from several threads at once.

        Args:
            caption: the true description.
            prediction: the description to be judged.

        Raises:
            NoMarksError: there are none for this prediction.
            UserError: there will be none for others either.
        """


@dataclass(frozen=True)
class Mean:
    """The mean of one mark over the descriptions that have it: their number, and the mean, None if there are none."""

    count: int
    score: float | None


@dataclass(frozen=True)
class DescriptionScores:
    """What a judge says of all descriptions.

    Attributes:
        means: of each of the four marks, by its name.
        overall: the mean of the four means, None if one is missing.
        marks: those of each sample, in their order; None for a failure.
        failures: why there are no marks, by the number of the sample. These samples are in no mean, as in the reference.
    """

    means: Mapping[str, Mean]
    overall: float | None
    marks: Sequence[Marks | None]
    failures: Mapping[int, str]

    def to_json(self) -> dict[str, dict[str, float | None]]:
        """Return the means in the layout of the reference's score file (3.analyze_score.py)."""
        return {name: {"count": mean.count, "score": mean.score} for name, mean in self.means.items()} | {"All": {"score": self.overall}}


def score_descriptions(judge: Judge, samples: Sequence[tuple[str, str]], workers: int) -> DescriptionScores:
    """Have all descriptions judged, and average their marks (the reference's 3.analyze_score.py). Equal samples are judged once.

    Args:
        judge: who judges.
        samples: the true and the predicted description of each sample.
        workers: how many are judged at a time, at least 1.

    Raises:
        UserError: the judge cannot judge any sample, for instance since it does not know the key.
    """
    marks: dict[tuple[str, str], Marks] = {}
    failures: dict[tuple[str, str], str] = {}
    different = list(dict.fromkeys(samples))
    for sample, outcome in _judged(judge, different, workers):
        if isinstance(outcome, Marks):
            marks[sample] = outcome
        elif isinstance(outcome, NoMarksError):
            failures[sample] = str(outcome)
        else:
            raise outcome
        log.debug("judged %d of %d descriptions", len(marks) + len(failures), len(different))
    found = [marks.get(sample) for sample in samples]
    means = {name: _mean([given.marks[name] for given in found if given is not None and name in given.marks]) for name in MARKS}
    scores = [mean.score for mean in means.values() if mean.score is not None]
    overall = sum(scores) / len(MARKS) if len(scores) == len(MARKS) else None
    return DescriptionScores(means, overall, found, {i: failures[sample] for i, sample in enumerate(samples) if sample in failures})


def read_marks(reply: str) -> Marks:
    """Read the marks from a reply, as the reference's 2.extract_re.py does: of a mark that is given twice, the last counts.

    The reference would take a mark above 5 too, which this does not.

    Raises:
        NoMarksError: the reply is empty, too long, has none of the four marks, or something that is no mark in their place.
    """
    if len(reply) > MAX_REPLY:
        raise NoMarksError(f"its reply has {len(reply)} characters, expected at most {MAX_REPLY}")
    marks: dict[str, float] = {}
    for name, text in _PATTERN.findall(reply):
        try:
            value = float(text)
        except ValueError:
            raise NoMarksError(f"its reply has {text[:20]!r} for {name[:40]!r}, expected a number from 0 to {BEST}") from None
        if name in MARKS:
            if value > BEST:
                raise NoMarksError(f"its reply has {text[:20]!r} for {name!r}, expected a number from 0 to {BEST}")
            marks[name] = value
    if not marks:
        raise NoMarksError(f"its reply {one_line(reply[:60])!r} has no marks, expected lines such as '1. {MARKS[0]}: 4'")
    return Marks(marks, reply)


def read_instruction(path: str | Path) -> str:
    """Return the text of a file that replaces ``INSTRUCTION``.

    Raises:
        UserError: the file cannot be read, is empty, too large, or not UTF-8.
    """
    expected = "expected a text that tells the judge how to mark"
    require_regular_file(path, expected)
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_INSTRUCTION + 1)
        text = content.decode("utf-8-sig").strip()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {expected}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8: {expected}") from None
    if not text or len(content) > MAX_INSTRUCTION:
        raise UserError(f"{path} {f'is larger than {MAX_INSTRUCTION >> 10} kB' if text else 'is empty'}: {expected}")
    return text


@dataclass(frozen=True)
class ChatJudge:
    """A judge behind an address with OpenAI's interface (``POST URL/chat/completions``), asked as in the reference's 1.eval_gpt.py.

    The key is read from ``OPENAI_API_KEY`` and sent in the header alone. Certificates are verified, and no redirect is followed.

    Attributes:
        url: the base address, as ``https://api.openai.com/v1``.
        model: the name that the server has for the model.
        instruction: what the model is told first.
        replies: where replies are kept and looked up; None for nowhere.
        timeout: seconds that the server may take for a reply.
        waits: seconds before each further try.

    Raises:
        UserError: the address or the key cannot be one, or the key would be sent unencrypted.
    """

    url: str
    model: str
    instruction: str = INSTRUCTION
    replies: KeptReplies | None = None
    timeout: float = TIMEOUT
    waits: Sequence[float] = WAITS
    _key: str = field(init=False, repr=False)
    _opener: urllib.request.OpenerDirector = field(init=False, repr=False)

    def __post_init__(self) -> None:
        key = os.environ.get(KEY_VARIABLE, "")
        if not (key.isascii() and all(c.isprintable() and c != " " for c in key)):
            raise UserError(f"{KEY_VARIABLE} holds a space, a line break or another character that no key has: set it to the key alone")
        host = _host(self.url)
        if key and self.url.startswith("http:") and host not in _LOOPBACK:
            raise UserError(f"{self.url} would send the key in {KEY_VARIABLE} unencrypted: use an https address, or unset {KEY_VARIABLE}")
        proxies = [urllib.request.ProxyHandler({})] if host in _LOOPBACK else []
        verified = urllib.request.HTTPSHandler(context=ssl.create_default_context())
        object.__setattr__(self, "url", self.url.rstrip("/"))
        object.__setattr__(self, "_key", key)
        object.__setattr__(self, "_opener", urllib.request.build_opener(_NoRedirect, verified, *proxies))

    def mark(self, caption: str, prediction: str) -> Marks:
        """Return the marks of a prediction, from the file of replies if they are there.

        Raises:
            NoMarksError: no try gave marks.
            UserError: the server cannot be reached, or refuses every request.
        """
        name = self._name(caption, prediction)
        if self.replies is not None and (kept := self.replies.get(name)) is not None:
            return read_marks(kept)
        marks = self._try(caption, prediction)
        if self.replies is not None:
            self.replies.add(name, marks.reply)
        return marks

    def _name(self, caption: str, prediction: str) -> str:
        """Return the name under which a reply is kept, which depends on all that differs between requests."""
        return hashlib.sha256(json.dumps([self.url, self.model, self.instruction, caption, prediction]).encode()).hexdigest()

    def _try(self, caption: str, prediction: str) -> Marks:
        for wait in (0.0, *self.waits):
            time.sleep(wait)
            try:
                return self._ask(caption, prediction)
            except _AgainError as error:
                last = error
        tries = f"{len(self.waits) + 1} tries"
        if not last.reached:
            raise UserError(f"the judge at {self.url} cannot be reached in {tries} ({last}): start the server, or correct the address")
        raise NoMarksError(f"the judge at {self.url} gave no marks in {tries}; the last time {last}")

    def _ask(self, caption: str, prediction: str) -> Marks:
        """Send one request and read the marks of its reply.

        Raises:
            _AgainError: another try may succeed.
            NoMarksError: the server refuses this request.
            UserError: the server refuses all requests.
        """
        texts = {"system": self.instruction, "user": f"##Correct answer: {caption}\n##Predicted answer: {prediction}\n"}
        messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in texts.items()]
        body = json.dumps({"model": self.model, "messages": messages, **_PARAMETERS}).encode()
        headers = {"Content-Type": "application/json", "User-Agent": "unipixel-jax"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        request = urllib.request.Request(f"{self.url}/chat/completions", body, headers)
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                content = self._text(self._body(response), "choices", 0, "message", "content")
        except urllib.error.HTTPError as error:
            with error:
                self._refuse(error)
        except urllib.error.URLError as error:
            if isinstance(error.reason, ssl.SSLCertVerificationError):
                raise UserError(f"the certificate of {self.url} is not valid ({error.reason.verify_message}): correct the address") from None
            timeout = isinstance(error.reason, TimeoutError)
            raise _AgainError("it took too long" if timeout else _reason(error.reason), reached=timeout) from None
        except TimeoutError:
            raise _AgainError("it took too long") from None
        except (OSError, http.client.HTTPException) as error:
            raise _AgainError(f"the connection broke ({_reason(error)})") from None
        if content is None:
            raise _AgainError("its answer held no reply")
        try:
            return read_marks(content)
        except NoMarksError as error:
            raise _AgainError(str(error)) from None

    def _refuse(self, error: urllib.error.HTTPError) -> NoReturn:
        """Raise what an answer with another status than 200 means."""
        status = error.code
        if 300 <= status < 400:
            place = self._hidden(error.headers.get("Location", ""))[:200]
            raise UserError(f"{self.url} redirects to {place!r}, which is not followed: give the judge's own address")
        if status in (401, 403):
            raise UserError(f"the judge at {self.url} refuses the key (status {status}): set {KEY_VARIABLE} to a key of that server")
        try:
            message = self._text(self._body(error), "error", "message") or ""
        except (OSError, http.client.HTTPException, _AgainError):
            message = ""
        said = f"status {status}{f', {one_line(message[:200])!r}' if message else ''}"
        if status in (408, 429) or status >= 500:
            raise _AgainError(f"it answered with {said}")
        if status in _OF_ONE_REQUEST:
            raise NoMarksError(f"the judge at {self.url} refuses the request ({said})")
        raise UserError(f"{self.url}/chat/completions has no answer for the model {self.model!r} ({said}): correct the address or the model")

    def _body(self, response: Any) -> bytes:
        """Return the body of a response, which is bounded in bytes and in seconds.

        Raises:
            _AgainError: it is too large or too slow.
        """
        end = time.monotonic() + self.timeout
        body = bytearray()
        while part := response.read1(1 << 16):
            body += part
            if len(body) > MAX_BODY:
                raise _AgainError(f"its answer had more than {MAX_BODY >> 20} MB")
            if time.monotonic() > end:
                raise _AgainError("it took too long")
        return bytes(body)

    def _text(self, body: bytes, *path: str | int) -> str | None:
        """Return the text at a place of a JSON body, without the key; None if it has none there."""
        try:
            found = json.loads(body)
            for step in path:
                found = found[step]
            found.encode()
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):  # ValueError: no JSON, or half a character of UTF-16
            return None
        return self._hidden(found) if isinstance(found, str) else None

    def _hidden(self, text: str) -> str:
        """Return a text of the server's with the key replaced, should it repeat it."""
        return text.replace(self._key, "***") if len(self._key) >= _SECRET else text


class _AgainError(Exception):
    """A try that failed, though the next may succeed: why, and whether the server was reached."""

    def __init__(self, reason: str, reached: bool = True) -> None:
        super().__init__(reason)
        self.reached = reached


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: urllib would repeat the request without its body, and send the key wherever the server says."""

    def redirect_request(self, *args: Any, **options: Any) -> None:
        """Return no further request, which makes an error of the redirect."""


def _host(url: str) -> str:
    """Return the host that an address names.

    Raises:
        UserError: it is no address of a server.
    """
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and not (parts.query or parts.fragment or parts.username or parts.password)
        host = parts.hostname or ""
        if sound and url.isascii() and url.isprintable() and " " not in url and host.encode("idna") and parts.port != 0:
            return host
    except ValueError:  # of a port that is no number, among others
        pass
    raise UserError(f"{url[:200]!r} is no address of a judge: expected one such as https://api.openai.com/v1 or http://127.0.0.1:8000/v1, without a password")


def _reason(error: object) -> str:
    """Say in the system's words why a connection failed; not in the server's, which might repeat the key."""
    return getattr(error, "strerror", None) or type(error).__name__


def _mean(values: Sequence[float]) -> Mean:
    return Mean(len(values), sum(values) / len(values) if values else None)


def _judged(judge: Judge, samples: Sequence[tuple[str, str]], workers: int) -> Iterator[tuple[tuple[str, str], Marks | BaseException]]:
    """Yield each sample with its marks or its error, as they come. The threads are daemons: a command that is interrupted does not wait for replies."""
    if workers < 1:
        raise UserError(f"{workers} descriptions at a time: expected at least 1")
    waiting: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[tuple[str, str], Marks | BaseException]] = queue.SimpleQueue()
    stopped = threading.Event()

    def work() -> None:
        while not stopped.is_set():
            try:
                sample = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((sample, judge.mark(*sample)))
            except BaseException as error:
                done.put((sample, error))

    for sample in samples:
        waiting.put(sample)
    try:
        for _ in range(min(workers, len(samples))):
            threading.Thread(target=work, name="judge", daemon=True).start()
        for _ in samples:
            yield done.get()
    finally:
        stopped.set()
