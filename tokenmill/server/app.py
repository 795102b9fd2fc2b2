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
from tokenmill.server import chat, completions, embeddings, health, models, requests, steps, tokenize
from tokenmill.server.answers import json_response
from tokenmill.server.batches import routes as batches
from tokenmill.server.batches.runner import BatchRunner
from tokenmill.server.body import read_model
from tokenmill.server.context import Context, fingerprint_of
from tokenmill.server.endpoint import Endpoint
from tokenmill.server.errors import ClientGone, problem_of
from tokenmill.server.files import routes as files
from tokenmill.server.files.records import Files
from tokenmill.server.guard import Guard, problem_response
from tokenmill.server.metrics import ServerMetrics
from tokenmill.server.openapi import document
from tokenmill.server.protocol.batches import BatchList, BatchObject, BatchRequest
from tokenmill.server.protocol.chat import ChatAnswer, ChatChunk, ChatRequest
from tokenmill.server.protocol.completions import CompletionAnswer, CompletionRequest
from tokenmill.server.protocol.embeddings import EmbeddingAnswer, EmbeddingRequest
from tokenmill.server.protocol.files import FileDeleted, FileForm, FileList, FileListQuery, FileObject, Paging
from tokenmill.server.protocol.others import (
    DetokenizeAnswer,
    DetokenizeRequest,
    Health,
    Index,
    Model,
    ModelList,
    TokenizeAnswer,
    TokenizeRequest,
    TokenizerInfo,
)
from tokenmill.server.protocol.response_body import DeletedResponse, InputTokens, ItemList, ResponseBody, StreamEvent
from tokenmill.server.protocol.responses import CountRequest, ItemsQuery, ResponseRequest, RetrieveQuery
from tokenmill.server.responses import endpoints as responses
from tokenmill.server.responses.state import Responses
from tokenmill.server.settings import ServerSettings
from tokenmill.server.store import Store


async def openapi(context: Context, request: Request) -> Response:
    """This description."""
    return json_response(document(ENDPOINTS, context.service.model_name))


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
    Endpoint(
        "POST",
        "/v1/responses",
        responses.create_response,
        ResponseRequest,
        ResponseBody,
        StreamEvent,
        generates=True,
    ),
    Endpoint("POST", "/v1/responses/input_tokens", responses.count_input_tokens, CountRequest, InputTokens),
    Endpoint(
        "GET",
        "/v1/responses/{id}",
        responses.retrieve_response,
        query=RetrieveQuery,
        answer=ResponseBody,
        chunk=StreamEvent,
    ),
    Endpoint("DELETE", "/v1/responses/{id}", responses.delete_response, answer=DeletedResponse),
    Endpoint("POST", "/v1/responses/{id}/cancel", responses.cancel_response, answer=ResponseBody),
    Endpoint("GET", "/v1/responses/{id}/input_items", responses.list_input_items, query=ItemsQuery, answer=ItemList),
    Endpoint("POST", "/v1/embeddings", embeddings.embeddings, EmbeddingRequest, EmbeddingAnswer, generates=True),
    Endpoint("GET", "/v1/models", models.list_models, answer=ModelList),
    Endpoint("GET", "/v1/models/{id:path}", models.retrieve_model, answer=Model),
    Endpoint("POST", "/v1/files", files.create_file, form=FileForm, answer=FileObject),
    Endpoint("GET", "/v1/files", files.list_files, query=FileListQuery, answer=FileList),
    Endpoint("GET", "/v1/files/{id}", files.retrieve_file, answer=FileObject),
    Endpoint("DELETE", "/v1/files/{id}", files.delete_file, answer=FileDeleted),
    Endpoint("GET", "/v1/files/{id}/content", files.file_content, answer=bytes),
    Endpoint("POST", "/v1/batches", batches.create_batch, BatchRequest, BatchObject),
    Endpoint("GET", "/v1/batches", batches.list_batches, query=Paging, answer=BatchList),
    Endpoint("GET", "/v1/batches/{id}", batches.retrieve_batch, answer=BatchObject),
    Endpoint("POST", "/v1/batches/{id}/cancel", batches.cancel_batch, answer=BatchObject),
    Endpoint("GET", "/v1/requests/{id}", requests.explain_request),
    Endpoint("POST", "/tokenize", tokenize.tokenize, TokenizeRequest, TokenizeAnswer),
    Endpoint("POST", "/detokenize", tokenize.detokenize, DetokenizeRequest, DetokenizeAnswer),
    Endpoint("GET", "/tokenizer_info", tokenize.tokenizer_info, answer=TokenizerInfo),
    Endpoint("GET", "/health", health.ready, answer=Health),
    Endpoint("GET", "/health/live", health.live, answer=Health),
    Endpoint("GET", "/health/ready", health.ready, answer=Health),
    Endpoint("GET", "/metrics", health.metrics, answer=None, admin=True),
    Endpoint("GET", "/debug/steps", steps.steps, admin=True),
    Endpoint("GET", "/openapi.json", openapi),
)


def create_app(service: Service, settings: ServerSettings | None = None, *, fingerprint: str | None = None) -> Guard:
    """The ASGI app over ``service``.

    Args:
        service: what generates; whoever made it starts and closes it.
        settings: limits and key; None for the defaults.
        fingerprint: ``system_fingerprint`` of every answer; None: made from what the service tells of itself.

    Raises:
        SetupError: ``settings.store_dir`` cannot be used.
    """
    settings = settings or ServerSettings()
    context = Context(
        service,
        settings,
        ServerMetrics(service),
        fingerprint or fingerprint_of(service),
        Files(Store(settings.store_dir), settings),
        generating=frozenset(endpoint.path for endpoint in ENDPOINTS if endpoint.generates),
    )
    origins = list(context.settings.cors_origins)
    cors = [Middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])]
    on_problem = _problem_handler(context)
    app = Starlette(
        routes=_routes(context),
        middleware=cors if origins else [],
        exception_handlers={
            TokenmillError: on_problem,
            HTTPException: on_problem,
            ClientGone: _client_gone,
            Exception: on_problem,
        },
    )
    app.router.redirect_slashes = False
    context.batches = BatchRunner(context, context.observer.of(app))
    context.responses = Responses(settings, context.files.store)
    return Guard(app, context)


def _routes(context: Context) -> list[Route]:
    """One for each address, so that a wrong method is told all the right ones."""
    by_path: dict[str, dict[str, Endpoint]] = {}
    for endpoint in ENDPOINTS:
        by_path.setdefault(endpoint.path, {})[endpoint.method] = endpoint
    return [_route(context, path, by_path) for path in by_path]


def _route(context: Context, path: str, by_path: dict[str, dict[str, Endpoint]]) -> Route:
    endpoints = by_path[path]

    async def call(request: Request) -> Response:
        if "{" in path and (spelt_out := by_path.get(request.scope["path"])) is not None:
            # It is no parameter of this address, but another one, which does not take this method.
            raise HTTPException(405, headers={"Allow": ", ".join(spelt_out)})
        endpoint = endpoints["GET" if request.method == "HEAD" else request.method]
        request.state.route = path
        if endpoint.admin:
            context.check_admin(request.state.ticket)
        if endpoint.generates:
            await context.slices.begin()
            context.check_ready()
            context.admission.check(request.state.ticket)
        if endpoint.body is None:
            return await endpoint.handler(context, request)
        with context.held.hold() as hold:
            body = await read_model(request, endpoint.body, context, hold)
            return await endpoint.handler(context, request, body)

    return Route(path, call, methods=list(endpoints))


def _problem_handler(context: Context) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def on_problem(request: Request, error: Exception) -> Response:
        ticket = request.state.ticket
        problem = problem_of(error, ticket.request_id)
        ticket.error = problem.code
        if not ticket.submitted:
            context.metrics.rejected.labels(problem.code).inc()
        return problem_response(problem)

    return on_problem


async def _client_gone(request: Request, error: Exception) -> Response:
    """Nobody reads this."""
    return Response(status_code=499)
