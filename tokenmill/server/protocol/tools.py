"""The shape of tool definitions and response formats, checked before either is built.

Both are refused as ``not_supported`` once they are known to be well formed, so that a client with a mistake
in a schema hears of the mistake and not of the missing feature.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from tokenmill.core.errors import InvalidRequest
from tokenmill.server.protocol.base import Wire

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


def _choice_kind(value: object) -> Literal["~named", "~mode"]:
    return "~named" if isinstance(value, dict) else "~mode"


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("~mode")] | Annotated[NamedToolChoice, Tag("~named")],
    Discriminator(_choice_kind),
]


class JsonSchemaFormat(Wire):
    name: FunctionName
    description: str | None = None
    schema_: dict[str, Any] = Field(default_factory=dict, alias="schema")
    strict: bool = False


class ResponseFormat(Wire):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None


def check_tools(tools: list[Tool], choice: str | NamedToolChoice | None) -> None:
    """Raise ``InvalidRequest`` with its path for anything about the tools that no server could serve."""
    for index, tool in enumerate(tools):
        parameters = tool.function.parameters
        path = f"tools[{index}].function.parameters"
        if parameters.get("type", "object") != "object":
            raise InvalidRequest("the parameters of a function must be of type object", param=f"{path}.type")
        check_schema(parameters, path)
    if choice == "required" and not tools:
        raise InvalidRequest("tool_choice 'required' needs at least one tool", param="tool_choice")
    if isinstance(choice, NamedToolChoice) and choice.function.name not in {tool.function.name for tool in tools}:
        raise InvalidRequest(
            f"tool_choice names '{choice.function.name}', which is not among tools", param="tool_choice.function.name"
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
