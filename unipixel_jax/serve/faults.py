"""What goes wrong with a request, as a status and one JSON message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi.responses import JSONResponse

from unipixel_jax.errors import TooLarge, UserError, one_line

TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}
"""The type of an error by its status; all others are an ``invalid_request_error``. The words are OpenAI's."""
CLIENT_GONE = 499
"""The status by which metrics count requests whose client closed the connection; nobody receives it."""
RETRY_SECONDS = 2
MAX_WORDS = 500
"""Characters of a message at most. A longer one quotes the request."""


class Fault(Exception):
    """A request that cannot be answered.

    Attributes:
        status: the HTTP status.
        code: a short name of the reason for programs.
        headers: headers of the response beside the usual ones.
    """

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code
        self.headers = dict(headers or {}) | ({"Retry-After": str(RETRY_SECONDS)} if status in (429, 503) else {})

    @property
    def body(self) -> dict[str, Any]:
        """The error as JSON."""
        return error_body(self.status, self.code, str(self))

    @property
    def response(self) -> JSONResponse:
        """The error as a response."""
        return JSONResponse(self.body, self.status, self.headers)


def error_body(status: int, code: str, message: str) -> dict[str, Any]:
    """The JSON of an error."""
    shown = one_line(message)
    shown = shown if len(shown) <= MAX_WORDS else shown[:MAX_WORDS] + " ..."
    return {"error": {"message": shown, "type": TYPES.get(status, "invalid_request_error"), "code": code}}


def fault_of(error: Exception | None, reason: str) -> Fault:
    """The fault of a job that failed.

    Args:
        error: what failed; None where the job was given up.
        reason: the reason that a user may be told, if it was the user's doing.
    """
    if isinstance(error, Fault):
        return error
    if isinstance(error, TooLarge):
        return Fault(413, "too_large", reason)
    if isinstance(error, UserError):
        return Fault(422, "invalid_input", reason)
    if error is None:
        return Fault(503, "cancelled", "the request was given up before it was answered: send it again")
    return Fault(500, "internal_error", "answering this request failed in the service, whose log says why: send it again, or tell those who run the service")


def no_such_model(name: str, known: str) -> Fault:
    """The fault of a request for another model than the one that is there."""
    return Fault(404, "model_not_found", f"there is no model {name[:80]!r} here, expected {known!r} (/v1/models)")


def schema_fault(errors: Sequence[Mapping[str, Any]]) -> Fault:
    """The fault of JSON that is none, or does not fit the schema; ``errors`` are pydantic's, of which the first is told."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return Fault(400, "invalid_json", f"the request is not JSON that can be read: {first['msg'].removeprefix('Invalid JSON: ')}")
    where = ".".join(str(part) for part in first["loc"]) or "the request"
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    told = "is no field that is known here" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
    return Fault(422, "invalid_request", f"{where}: {told}{more}")


def status_fault(status: int, detail: str, headers: Mapping[str, str] | None = None) -> Fault:
    """The fault for a status that the framework raises by itself, such as 404 or 405."""
    phrase = HTTPStatus(status).phrase
    return Fault(status, phrase.lower().replace(" ", "_"), detail if detail != phrase else f"{phrase}: see /openapi.json for what there is", headers)
