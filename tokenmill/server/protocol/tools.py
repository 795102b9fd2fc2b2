"""The shape of tool definitions, of choices among them, and of response formats."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from tokenmill.core.errors import InvalidRequest
from tokenmill.server.dialects import Function
from tokenmill.server.protocol.base import Wire
from tokenmill.server.wishes import ToolWishes

MAX_TOOLS = 128
MAX_SCHEMA_DEPTH = 64
MAX_PATTERN_CHARS = 512
_TYPES = frozenset({"string", "number", "integer", "boolean", "object", "array", "null"})
_SCHEMAS_BY_NAME = ("properties", "$defs", "definitions", "patternProperties")
_SCHEMA_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SCHEMAS = ("items", "additionalProperties", "not")

FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class FunctionDefinition(Wire):
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)
    """A JSON schema whose type is object."""
    strict: bool = False


class Tool(Wire):
    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(Wire):
    name: FunctionName


class NamedToolChoice(Wire):
    type: Literal["function"]
    function: NamedFunction


class AllowedTools(Wire):
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedToolChoice], Field(fail_fast=True, min_length=1, max_length=MAX_TOOLS)]


class AllowedToolChoice(Wire):
    """Some of the tools may be called."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


def choice_kind(value: object) -> Literal["~named", "~allowed", "~mode"]:
    if not isinstance(value, dict):
        return "~mode"
    return "~allowed" if value.get("type") == "allowed_tools" else "~named"


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("~mode")]
    | Annotated[NamedToolChoice, Tag("~named")]
    | Annotated[AllowedToolChoice, Tag("~allowed")],
    Discriminator(choice_kind),
]


class JsonSchemaFormat(Wire):
    name: FunctionName
    description: str | None = None
    schema_: dict[str, Any] = Field(default_factory=dict, alias="schema")
    strict: bool = False


class ResponseFormat(Wire):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None


def check_format(wanted: ResponseFormat) -> None:
    """Raise ``InvalidRequest`` where a format and its schema do not go together, or the schema is none."""
    if wanted.type != "json_schema":
        if wanted.json_schema is not None:
            raise InvalidRequest(
                "response_format.json_schema is only for type json_schema", param="response_format.json_schema"
            )
        return
    if wanted.json_schema is None:
        raise InvalidRequest(
            "Missing required parameter: 'response_format.json_schema'.",
            param="response_format.json_schema",
            code="missing_required_parameter",
        )
    check_schema(wanted.json_schema.schema_, "response_format.json_schema.schema")


def check_tools(tools: list[Tool], choice: ToolChoice | None) -> None:
    """Raise ``InvalidRequest`` with its path for anything about the tools that no server could serve."""
    names: set[str] = set()
    for index, tool in enumerate(tools):
        if tool.function.name in names:
            raise InvalidRequest(f"two tools are named '{tool.function.name}'", param=f"tools[{index}].function.name")
        names.add(tool.function.name)
        parameters = tool.function.parameters
        path = f"tools[{index}].function.parameters"
        if parameters.get("type", "object") != "object":
            raise InvalidRequest("the parameters of a function must be of type object", param=f"{path}.type")
        check_schema(parameters, path)
    if choice == "required" and not tools:
        raise InvalidRequest("tool_choice 'required' needs at least one tool", param="tool_choice")
    for path, name in _named(choice):
        if name not in names:
            raise InvalidRequest(f"tool_choice names '{name}', which is not among tools", param=f"{path}.function.name")


def _named(choice: ToolChoice | None) -> list[tuple[str, str]]:
    """The names in a choice, each with the path of its place."""
    if isinstance(choice, NamedToolChoice):
        return [("tool_choice", choice.function.name)]
    if isinstance(choice, AllowedToolChoice):
        named = enumerate(choice.allowed_tools.tools)
        return [(f"tool_choice.allowed_tools.tools[{index}]", tool.function.name) for index, tool in named]
    return []


def tool_wishes(tools: list[Tool], choice: ToolChoice | None, *, parallel: bool) -> ToolWishes:
    """What a turn is told of the tools."""
    functions = tuple(function_of(tool) for tool in tools)
    if isinstance(choice, NamedToolChoice):
        return ToolWishes(functions, "required", frozenset({choice.function.name}), parallel=False)
    if isinstance(choice, AllowedToolChoice):
        allowed = frozenset(tool.function.name for tool in choice.allowed_tools.tools)
        return ToolWishes(functions, choice.allowed_tools.mode, allowed, parallel)
    return ToolWishes(functions, choice or "auto", None, parallel)


def function_of(tool: Tool) -> Function:
    """The function of a tool; the template is given the tool as it was sent."""
    function = tool.function
    return Function(
        function.name,
        function.description,
        function.parameters,
        function.strict,
        wire=tool.model_dump(exclude_unset=True),
    )


def check_schema(schema: object, path: str, depth: int = 0) -> None:
    """Check the parts of a JSON schema that give it its shape; ``path`` is where it stands in the body."""
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        raise InvalidRequest("a schema must be an object", param=path, code="invalid_schema")
    if depth > MAX_SCHEMA_DEPTH:
        raise InvalidRequest(f"a schema must not nest deeper than {MAX_SCHEMA_DEPTH}", param=path[:256])
    _check_type(schema, path)
    _check_pattern(schema, path)
    for name in _SCHEMAS_BY_NAME:
        for key, inner in _a(dict, schema, name, path).items():
            check_schema(inner, f"{path}.{name}.{key[:64]}", depth + 1)
    for name in _SCHEMA_LISTS:
        for index, inner in enumerate(_a(list, schema, name, path)):
            check_schema(inner, f"{path}.{name}[{index}]", depth + 1)
    for name in _SCHEMAS:
        check_schema(schema.get(name, True), f"{path}.{name}", depth + 1)


def _check_type(schema: dict[str, Any], path: str) -> None:
    names = schema.get("type", [])
    for name in names if isinstance(names, list) else [names]:
        if not isinstance(name, str) or name not in _TYPES:
            raise InvalidRequest(
                f"{str(name)[:64]!a} is no JSON schema type", param=f"{path}.type", code="invalid_schema"
            )


def _check_pattern(schema: dict[str, Any], path: str) -> None:
    pattern = schema.get("pattern", "")
    try:
        if not isinstance(pattern, str) or len(pattern) > MAX_PATTERN_CHARS:
            raise InvalidRequest(
                f"a pattern must be a string of at most {MAX_PATTERN_CHARS} characters",
                param=f"{path}.pattern",
                code="invalid_schema",
            )
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise InvalidRequest(
            f"the pattern is no regular expression: {error}", param=f"{path}.pattern", code="invalid_schema"
        ) from None


def _a(kind: type[Any], schema: dict[str, Any], name: str, path: str) -> Any:
    value = schema.get(name, kind())
    if not isinstance(value, kind):
        wanted = "an object" if kind is dict else "an array"
        raise InvalidRequest(f"{name} must be {wanted}", param=f"{path}.{name}", code="invalid_schema")
    return value
