"""``/v1/files``: what comes in and what goes out."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from tokenmill.server.protocol.base import Wire

MIN_EXPIRY_S = 3600
MAX_EXPIRY_S = 30 * 86400

Purpose = Literal["assistants", "batch", "evals", "fine-tune", "user_data", "vision"]


class ExpiresAfter(Wire):
    """When a file is deleted by itself."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=MIN_EXPIRY_S, le=MAX_EXPIRY_S)]


class FileForm(BaseModel):
    """The fields of the multipart form that uploads a file; ``expires_after`` comes as ``expires_after[seconds]``."""

    model_config = ConfigDict(extra="forbid")

    file: bytes
    purpose: Purpose
    expires_after: ExpiresAfter | None = None


class Paging(BaseModel):
    """Where a list begins and how long it may be. What else stands in the address is ignored, as by OpenAI."""

    after: Annotated[str, Field(max_length=256)] | None = None
    """The id of the last object that has been seen."""
    limit: Annotated[int, Field(ge=1, le=100)] = 20


class FileListQuery(Paging):
    limit: Annotated[int, Field(ge=1, le=10_000)] = 10_000
    order: Literal["asc", "desc"] = "desc"
    purpose: Annotated[str, Field(max_length=256)] | None = None


class FileObject(TypedDict):
    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: Literal["processed"]


class FileList(TypedDict):
    object: Literal["list"]
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(TypedDict):
    id: str
    object: Literal["file"]
    deleted: Literal[True]
