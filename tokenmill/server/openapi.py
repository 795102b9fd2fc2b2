"""``/openapi.json``: made from the route table and the types that check requests and build answers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from pydantic import TypeAdapter

from tokenmill import __version__
from tokenmill.server.endpoint import Endpoint
from tokenmill.server.protocol.base import ErrorBody

_REF = "#/components/schemas/{model}"
_ERRORS = {
    "400": "The request is wrong: `param` names the field.",
    "401": "The API key is missing or wrong.",
    "404": "No such address, model or request.",
    "408": "The body did not arrive in time.",
    "413": "The body is too large.",
    "415": "The body is not JSON.",
    "500": "The server failed.",
    "503": "Not taken now: see Retry-After.",
    "504": "The request's own deadline passed.",
}


def document(endpoints: Iterable[Endpoint]) -> dict[str, Any]:
    """The OpenAPI 3.1 description of ``endpoints``."""
    endpoints = list(endpoints)
    types = {id(kind): kind for e in endpoints for kind in (e.body, e.answer, e.chunk) if kind is not None}
    inputs = {id(e.body) for e in endpoints}
    wanted = [
        (key, "validation" if key in inputs else "serialization", TypeAdapter(kind)) for key, kind in types.items()
    ]
    wanted.append((0, "serialization", TypeAdapter(ErrorBody)))
    made, shared = TypeAdapter.json_schemas(wanted, ref_template=_REF)  # type: ignore[arg-type]
    schemas = {key: schema for (key, _), schema in made.items()}
    paths: dict[str, Any] = {}
    for endpoint in endpoints:
        path = re.sub(r"\{(\w+):\w+\}", r"{\1}", endpoint.path)
        paths.setdefault(path, {})[endpoint.method.lower()] = _operation(endpoint, path, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Tokenmill", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": shared.get("$defs", {}),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(endpoint: Endpoint, path: str, schemas: dict[int, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": endpoint.handler.__name__,
        "summary": (endpoint.handler.__doc__ or "").strip().split("\n")[0],
        "responses": {"200": {"description": "The answer.", "content": _content(endpoint, schemas)}},
    }
    names = re.findall(r"\{(\w+)\}", path)
    if names:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    if endpoint.body is not None:
        content = {"application/json": {"schema": schemas[id(endpoint.body)]}}
        operation["requestBody"] = {"required": True, "content": content}
    error = {"application/json": {"schema": schemas[0]}}
    operation["responses"] |= {code: {"description": text, "content": error} for code, text in _ERRORS.items()}
    return operation


def _content(endpoint: Endpoint, schemas: dict[int, Any]) -> dict[str, Any]:
    if endpoint.answer is None:
        return {"text/plain": {"schema": {"type": "string"}}}
    content = {"application/json": {"schema": schemas[id(endpoint.answer)]}}
    if endpoint.chunk is not None:
        content["text/event-stream"] = {"schema": schemas[id(endpoint.chunk)]}
    return content
