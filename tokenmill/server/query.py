"""The fields of an address, checked like those of a body."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from tokenmill.server.errors import from_validation

M = TypeVar("M", bound=BaseModel)


def read_query(request: Request, model: type[M]) -> M:
    """The query of ``request`` as ``model``; of a field that stands twice, the last counts.

    Raises:
        InvalidRequest: a field is wrong; ``param`` names it.
    """
    try:
        return model.model_validate(dict(request.query_params))
    except ValidationError as error:
        raise from_validation(error, model) from None
