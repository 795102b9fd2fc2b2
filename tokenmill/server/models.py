"""``GET /v1/models`` and ``GET /v1/models/{id}``: what is served."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from tokenmill.server.answers import json_response
from tokenmill.server.context import Context
from tokenmill.server.protocol.others import Model, ModelList


async def list_models(context: Context, request: Request) -> Response:
    """Every model that may be named in a request."""
    answer: ModelList = {"object": "list", "data": [_model(context)]}
    return json_response(answer)


async def retrieve_model(context: Context, request: Request) -> Response:
    """One model, by its id; ids may hold slashes."""
    context.check_model(request.path_params["id"])
    return json_response(_model(context))


def _model(context: Context) -> Model:
    service = context.service
    return {
        "id": service.model_name,
        "object": "model",
        "created": service.created,
        "owned_by": "tokenmill",
        "max_model_len": service.max_context,
    }
