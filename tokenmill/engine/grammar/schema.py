"""A JSON schema as a tree: where its subschemas are, what it refers to, where a complaint belongs.

The compiler says what it does not like, not where. Walking the schema again finds the place: the first subschema
that has the keyword, the value or the reference that the complaint quotes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

_BY_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE = (
    "items",
    "additionalProperties",
    "additionalItems",
    "not",
    "if",
    "then",
    "else",
    "contains",
    "propertyNames",
    "unevaluatedItems",
    "unevaluatedProperties",
)
_QUOTED = re.compile(r'"([^"]+)"')


def walk(schema: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every subschema that is an object, with its path (``properties.a.items``); the outermost first."""
    waiting: list[tuple[str, Any]] = [("", schema)]
    while waiting:
        path, part = waiting.pop()
        if not isinstance(part, dict):
            continue
        yield path, part
        dot = f"{path}." if path else ""
        inner: list[tuple[str, Any]] = []
        for name in _BY_NAME:
            if isinstance(part.get(name), dict):
                inner += [(f"{dot}{name}.{key[:64]}", value) for key, value in part[name].items()]
        for name in _LISTS:
            if isinstance(part.get(name), list):
                inner += [(f"{dot}{name}[{index}]", value) for index, value in enumerate(part[name])]
        inner += [(f"{dot}{name}", part[name]) for name in _SINGLE if name in part]
        waiting += reversed(inner)


def check_references(schema: Any) -> tuple[str, str] | None:
    """(path, what is wrong) of the first reference that leaves the document: none is ever fetched."""
    for path, part in walk(schema):
        target = part.get("$ref")
        where = f"{path}.$ref" if path else "$ref"
        if target is not None and not isinstance(target, str):
            return where, "$ref must be a string"
        if target is not None and not target.startswith("#"):
            return where, "$ref must stay within the schema ('#/$defs/…'): nothing is fetched; put it under $defs"
    return None


def place_of(schema: Any, complaint: str) -> str:
    """Where in ``schema`` the compiler's complaint most likely belongs; "" if it does not tell."""
    if complaint.startswith("Unimplemented keys"):
        keys = _QUOTED.findall(complaint)
        return _first(schema, lambda part: next((key for key in keys if key in part), None))
    for key, said in (("oneOf", "oneOf constraints"), ("patternProperties", "patternProperty regexes")):
        if complaint.startswith(said):
            return _first(schema, lambda part, key=key: key if key in part else None)
    for key, said in (("format", "Unknown format: "), ("type", "Invalid type: ")):
        if complaint.startswith(said):
            value = complaint.removeprefix(said).split("\n")[0]
            return _first(schema, lambda part, key=key, value=value: key if _says(part.get(key), value) else None)
    for key in ("$ref", "pattern", "multipleOf"):
        found = _first(schema, lambda part, key=key: key if key in part and _quotes(complaint, part[key]) else None)
        if found:
            return found
    return ""


def _first(schema: Any, test: Any) -> str:
    for path, part in walk(schema):
        key = test(part)
        if key is not None:
            return f"{path}.{key}" if path else key
    return ""


def _says(value: Any, wanted: str) -> bool:
    return wanted in value if isinstance(value, list) else value == wanted


def _quotes(complaint: str, value: Any) -> bool:
    text = value.removeprefix("#") if isinstance(value, str) else json.dumps(value)
    return len(text) > 1 and text in complaint
