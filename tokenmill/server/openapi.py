"""``/openapi.json``: made from the route table and the types that check requests and build answers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, TypeAdapter

from tokenmill import __version__
from tokenmill.server.endpoint import Endpoint
from tokenmill.server.protocol.base import ErrorBody

_REF = "#/components/schemas/{model}"
_ERRORS = {
    "400": "The request is wrong: `param` names the field.",
    "401": "The API key is missing or wrong.",
    "403": "Not yours to do, or no more room for you.",
    "404": "No such address, model or object.",
    "409": "Not in the state that the object is in.",
    "408": "The body did not arrive in time.",
    "413": "The body is too large.",
    "415": "The body is not JSON.",
    "500": "The server failed.",
    "503": "Not taken now: see Retry-After.",
    "504": "The request's own deadline passed.",
    "507": "The server's disk is full.",
}


def document(endpoints: Iterable[Endpoint], model: str | None = None) -> dict[str, Any]:
    """The OpenAPI 3.1 description of ``endpoints``; where ``model`` is given, no other may be named."""
    endpoints = list(endpoints)
    types = {
        id(kind): kind for e in endpoints for kind in (e.body, e.query, e.form, e.answer, e.chunk) if kind is not None
    }
    inputs = {id(kind) for e in endpoints for kind in (e.body, e.query, e.form)}
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
    if model is not None:
        for endpoint in endpoints:
            _name_model(schemas.get(id(endpoint.body), {}), shared.get("$defs", {}), model)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Tokenmill", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": shared.get("$defs", {}),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _name_model(schema: dict[str, Any], shared: dict[str, Any], model: str) -> None:
    """Have the property ``model`` of a request's schema say what it may be."""
    schema = shared.get(schema.get("$ref", "").rpartition("/")[2], schema)
    if found := schema.get("properties", {}).get("model"):
        kind = next((one for one in found.get("anyOf", ()) if one.get("type") == "string"), found)
        kind["enum"] = [model]


def _operation(endpoint: Endpoint, path: str, schemas: dict[int, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": endpoint.handler.__name__,
        "summary": (endpoint.handler.__doc__ or "").strip().split("\n")[0],
        "responses": {"200": {"description": "The answer.", "content": _content(endpoint, schemas)}},
    }
    names = re.findall(r"\{(\w+)\}", path)
    parameters = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]
    if parameters or endpoint.query is not None:
        operation["parameters"] = parameters + _query(endpoint.query)
    for kind, fields in (("application/json", endpoint.body), ("multipart/form-data", endpoint.form)):
        if fields is not None:
            operation["requestBody"] = {"required": True, "content": {kind: {"schema": schemas[id(fields)]}}}
    error = {"application/json": {"schema": schemas[0]}}
    operation["responses"] |= {code: {"description": text, "content": error} for code, text in _ERRORS.items()}
    return operation


def _query(model: type[BaseModel] | None) -> list[dict[str, Any]]:
    properties = {} if model is None else model.model_json_schema()["properties"]
    return [{"name": name, "in": "query", "required": False, "schema": schema} for name, schema in properties.items()]


def _content(endpoint: Endpoint, schemas: dict[int, Any]) -> dict[str, Any]:
    if endpoint.answer is None:
        return {"text/plain": {"schema": {"type": "string"}}}
    if endpoint.answer is bytes:
        return {"application/octet-stream": {"schema": schemas[id(bytes)]}}
    content = {"application/json": {"schema": schemas[id(endpoint.answer)]}}
    if endpoint.chunk is not None:
        content["text/event-stream"] = {"schema": schemas[id(endpoint.chunk)]}
    return content
