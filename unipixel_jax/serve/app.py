"""The application: routes, handlers of errors, and what stands before them."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import FastAPI, Request, Response
from fastapi.responses import PlainTextResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from unipixel_jax.errors import UserError
from unipixel_jax.serve.chat import chat_routes
from unipixel_jax.serve.faults import CLIENT_GONE, Fault, fault_of, no_such_model, status_fault
from unipixel_jax.serve.guard import Guard
from unipixel_jax.serve.openapi import complete
from unipixel_jax.serve.schema import ErrorResponse, Health, Model, Models
from unipixel_jax.serve.segment import segment_routes
from unipixel_jax.serve.service import Service

DESCRIPTION = "UniPixel: segments, tracks and discusses objects named in words, in photos and clips."


def make_app(service: Service) -> ASGIApp:
    """The ASGI application of a service."""
    app = FastAPI(title="unipixel-jax", version="1", description=DESCRIPTION, docs_url=None, redoc_url=None)
    app.include_router(segment_routes(service))
    app.include_router(chat_routes(service))
    _add_small_routes(app, service)
    _add_handlers(app)
    complete(app, bool(service.settings.api_key))
    guarded = Guard(app, service.settings, service.metrics, lambda: service.scheduler.stopping)
    if not service.settings.cors_origins:
        return guarded
    return CORSMiddleware(guarded, allow_origins=service.settings.cors_origins, allow_methods=["GET", "POST"], allow_headers=["Authorization", "Content-Type"])


def _add_small_routes(app: FastAPI, service: Service) -> None:
    keyed: dict[int | str, dict[str, Any]] = {401: {"model": ErrorResponse, "description": "The key is missing or wrong."}}

    @app.get("/v1/models", response_model=Models, responses=keyed, summary="The model", description="The name by which requests ask for the model.")
    async def models() -> Models:
        return Models(data=[Model(id=service.settings.model_name, created=service.created)])

    missing: dict[int | str, dict[str, Any]] = {404: {"model": ErrorResponse, "description": "There is no such model."}}

    @app.get("/v1/models/{name:path}", response_model=Model, responses=keyed | missing, summary="A model", description="The model, by its name.")
    async def model(name: str) -> Model:
        if name != service.settings.model_name:
            raise no_such_model(name, service.settings.model_name)
        return Model(id=name, created=service.created)

    @app.get(
        "/health",
        response_model=Health,
        responses={503: {"model": Health, "description": "Requests are not taken."}},
        summary="Whether requests are taken",
        description="Status 200 where the service takes requests, 503 while it warms up or stops. It needs no key.",
    )
    async def health(response: Response) -> Health:
        stopping = service.scheduler.stopping
        status: Literal["ready", "starting", "stopping"] = "stopping" if stopping else "ready" if service.ready else "starting"
        response.status_code = 200 if status == "ready" else 503
        return Health(status=status, model=service.settings.model_name, waiting=service.scheduler.waiting)

    refused = {"description": "The key is missing or wrong.", "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorResponse"}}}}
    told: dict[int | str, dict[str, Any]] = {401: refused}

    @app.get("/metrics", response_class=PlainTextResponse, responses=told, summary="Counters", description="In Prometheus's text format.")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_handlers(app: FastAPI) -> None:
    @app.exception_handler(Fault)
    async def fault(request: Request, error: Fault) -> Response:
        return error.response

    @app.exception_handler(UserError)
    async def user_error(request: Request, error: UserError) -> Response:
        return fault_of(error, str(error)).response

    @app.exception_handler(Exception)
    async def unknown(request: Request, error: Exception) -> Response:
        return fault_of(error, "").response

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        return status_fault(error.status_code, str(error.detail), error.headers).response

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return Fault(CLIENT_GONE, "client_gone", "the client closed the connection").response
