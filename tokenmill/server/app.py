"""Puts the server together: the route table, and the one path that every request takes through it.

::

    Guard (id, key) → router → ready? → body (read, parse, check) → endpoint → answer or EventStream
                        └────────── whatever is raised → errors.problem_of → OpenAI's error body
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tokenmill import __version__
from tokenmill.core.errors import TokenmillError
from tokenmill.engine.service import Service
from tokenmill.server import chat, completions, health, models, requests, steps, tokenize
from tokenmill.server.answers import json_response
from tokenmill.server.body import read_model
from tokenmill.server.context import Context, fingerprint_of
from tokenmill.server.endpoint import Endpoint
from tokenmill.server.errors import ClientGone, problem_of
from tokenmill.server.guard import Guard, problem_response
from tokenmill.server.metrics import ServerMetrics
from tokenmill.server.openapi import document
from tokenmill.server.protocol.chat import ChatAnswer, ChatChunk, ChatRequest
from tokenmill.server.protocol.completions import CompletionAnswer, CompletionRequest
from tokenmill.server.protocol.others import (
    DetokenizeAnswer,
    DetokenizeRequest,
    Health,
    Index,
    Model,
    ModelList,
    TokenizeAnswer,
    TokenizeRequest,
)
from tokenmill.server.settings import ServerSettings


async def openapi(context: Context, request: Request) -> Response:
    """This description."""
    return json_response(document(ENDPOINTS))


async def index(context: Context, request: Request) -> Response:
    """What this server is, and where to go."""
    answer: Index = {
        "name": "tokenmill",
        "version": __version__,
        "model": context.service.model_name,
        "endpoints": [f"{endpoint.method} {endpoint.path}" for endpoint in ENDPOINTS],
    }
    return json_response(answer)


ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint("GET", "/", index, answer=Index),
    Endpoint("POST", "/v1/chat/completions", chat.chat, ChatRequest, ChatAnswer, ChatChunk, generates=True),
    Endpoint(
        "POST",
        "/v1/completions",
        completions.completions,
        CompletionRequest,
        CompletionAnswer,
        CompletionAnswer,
        generates=True,
    ),
    Endpoint("GET", "/v1/models", models.list_models, answer=ModelList),
    Endpoint("GET", "/v1/models/{id:path}", models.retrieve_model, answer=Model),
    Endpoint("GET", "/v1/requests/{id}", requests.explain_request),
    Endpoint("POST", "/tokenize", tokenize.tokenize, TokenizeRequest, TokenizeAnswer),
    Endpoint("POST", "/detokenize", tokenize.detokenize, DetokenizeRequest, DetokenizeAnswer),
    Endpoint("GET", "/health", health.ready, answer=Health),
    Endpoint("GET", "/health/live", health.live, answer=Health),
    Endpoint("GET", "/health/ready", health.ready, answer=Health),
    Endpoint("GET", "/metrics", health.metrics, answer=None),
    Endpoint("GET", "/debug/steps", steps.steps),
    Endpoint("GET", "/openapi.json", openapi),
)


def create_app(service: Service, settings: ServerSettings | None = None, *, fingerprint: str | None = None) -> Guard:
    """The ASGI app over ``service``.

    Args:
        service: what generates; whoever made it starts and closes it.
        settings: limits and key; None for the defaults.
        fingerprint: ``system_fingerprint`` of every answer; None: made from what the service tells of itself.
    """
    context = Context(
        service, settings or ServerSettings(), ServerMetrics(service), fingerprint or fingerprint_of(service)
    )
    origins = list(context.settings.cors_origins)
    cors = [Middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])]
    on_problem = _problem_handler(context)
    app = Starlette(
        routes=[_route(context, endpoint) for endpoint in ENDPOINTS],
        middleware=cors if origins else [],
        exception_handlers={
            TokenmillError: on_problem,
            HTTPException: on_problem,
            ClientGone: _client_gone,
            Exception: on_problem,
        },
    )
    app.router.redirect_slashes = False
    return Guard(app, context)


def _route(context: Context, endpoint: Endpoint) -> Route:
    async def call(request: Request) -> Response:
        request.state.route = endpoint.path
        if endpoint.generates:
            context.check_ready()
        if endpoint.body is None:
            return await endpoint.handler(context, request)
        body = await read_model(request, endpoint.body, context)
        return await endpoint.handler(context, request, body)

    return Route(endpoint.path, call, methods=[endpoint.method], name=endpoint.handler.__name__)


def _problem_handler(context: Context) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def on_problem(request: Request, error: Exception) -> Response:
        ticket = request.state.ticket
        problem = problem_of(error, ticket.request_id)
        if not ticket.submitted:
            context.metrics.rejected.labels(problem.code).inc()
        return problem_response(problem)

    return on_problem


async def _client_gone(request: Request, error: Exception) -> Response:
    """Nobody reads this."""
    return Response(status_code=499)
