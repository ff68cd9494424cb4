"""The parts of the OpenAPI document that FastAPI cannot see, since bodies are read by our own hands to keep their limits."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from unipixel_jax.serve.schema import ChatRequest, ErrorResponse, MediaRequest

STATUSES = {
    400: "The body, its base64 or an address in it cannot be read.",
    401: "The key is missing or wrong.",
    408: "The body came too slowly.",
    413: "The body, the photo or the clip is too large.",
    415: "The content type is not known.",
    422: "A field is unknown or wrong, or the media cannot be used.",
    429: "The queue is full.",
    500: "The service failed.",
    503: "The service is stopping, or the answer took too long.",
}


def refusals() -> dict[int | str, dict[str, Any]]:
    """The responses of a route that works, other than the answer."""
    return {status: {"model": ErrorResponse, "description": words} for status, words in STATUSES.items()}


def media_body() -> dict[str, Any]:
    """The body of a request with media."""
    files = {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1, "description": "a photo or a video, or the frames of a clip"}
    words = {"type": "string", "contentMediaType": "application/json", "contentSchema": _named(MediaRequest), "description": "MediaRequest, without media"}
    form = {"type": "object", "properties": {"request": words, "file": files}, "required": ["request", "file"], "additionalProperties": False}
    example = {"request": '{"prompt": "Please segment the large blue square."}', "file": ["photo.png"]}
    content = {"application/json": _json(MediaRequest), "multipart/form-data": {"schema": form, "example": example}}
    return {"requestBody": {"required": True, "content": content}}


def chat_body() -> dict[str, Any]:
    """The body of a conversation."""
    return {"requestBody": {"required": True, "content": {"application/json": _json(ChatRequest)}}}


def complete(app: FastAPI, key: bool) -> None:
    """Have an application's document name the bodies' models, and the key where one is needed."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = plain()
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            for kind in (MediaRequest, ChatRequest):
                own = kind.model_json_schema(ref_template="#/components/schemas/{model}")
                schemas.update(own.pop("$defs", {}))
                schemas[kind.__name__] = own
            if key:
                document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
                document["security"] = [{"key": []}]
                document["paths"]["/health"]["get"]["security"] = []
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _json(kind: type[BaseModel]) -> dict[str, Any]:
    examples = kind.model_config.get("json_schema_extra")
    assert isinstance(examples, dict) and isinstance(examples["examples"], list)
    return {"schema": _named(kind), "examples": {f"example{number}": {"value": value} for number, value in enumerate(examples["examples"], start=1)}}


def _named(kind: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}
