"""``Endpoint``: one row of the route table. Routing, checking and ``/openapi.json`` are all made from it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from starlette.responses import Response


@dataclass(frozen=True, slots=True)
class Endpoint:
    method: str
    path: str
    handler: Callable[..., Awaitable[Response]]
    """``(context, request)``, and the checked body where ``body`` is given; its docstring is the description."""
    body: type[BaseModel] | None = None
    answer: Any = dict[str, Any]
    """The type of the JSON that it answers with; None for text."""
    chunk: Any = None
    """The type of one event, where the answer can be streamed."""
    query: type[BaseModel] | None = None
    """The fields that its address may have; the handler reads them with ``read_query``."""
    form: type[BaseModel] | None = None
    """The fields of the multipart form that it takes; the handler reads it as it arrives."""
    generates: bool = False
    """It needs a service that takes requests."""
    admin: bool = False
    """It shows what belongs to everybody: where keys have tenants, for keys that are flagged ``admin`` only."""
