"""Calls whose arguments are tags, one each: Qwen3-Coder, GLM 4.5, MiniMax M2, Seed.

Strings stand in the tags as they are, everything else as JSON; which it is, only the function's schema tells. They
become one JSON object as they come: a string piece by piece, any other value once its tag is closed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from tokenmill.server.dialects.base import Dialect, Function, Functions
from tokenmill.server.dialects.lark import Terms
from tokenmill.server.dialects.pythonic import json_inside
from tokenmill.server.dialects.reader import Malformed, Parse, Reader

_NAME = re.compile(r"[A-Za-z0-9_.-]*")
_KEY = re.compile(r"[^<>\"\n]*")
_CONSTANTS = {"True": "true", "False": "false", "None": "null"}


class Tagged(Dialect):
    def __init__(
        self,
        name: str,
        signs: tuple[tuple[str, ...], ...],
        *,
        calls: tuple[str, str],
        function: tuple[str, str, str],
        key: tuple[str, str],
        value: tuple[str, str],
    ) -> None:
        """
        Args:
            calls: what stands around a call.
            function: before the name, after it, and at the function's end.
            key: before an argument's name, and between it and the value.
            value: after a value, and after an argument.
        """
        self.name = name
        self.signs = signs
        self.trigger = calls[0]
        self._function, self._key, self._value = function, key, value
        self._end = calls[1]
        self.tail = function[2] + calls[1]
        self.between = "\n" + calls[0]
        self.markers = tuple(text.strip() for text in (*calls, *function, *key, *value) if text.strip())

    def read(self, reader: Reader, functions: Functions) -> Parse[None]:
        while start := (yield from reader.until(reader.sink.content, self.trigger)):
            yield from reader.attempt(start, lambda: self._call(reader, functions))

    def head(self, terms: Terms, function: Function) -> str:
        return terms.text(self._function[0] + function.name + self._function[1])

    def arguments(self, terms: Terms, function: Function) -> str:
        parameters = function.parameters
        required = frozenset(parameters.get("required", ()))
        made = []
        for name, schema in parameters.get("properties", {}).items():
            lead, end = terms.text(self._key[0] + name + self._key[1]), "".join(self._value)
            if not is_text(schema):
                value = f"{terms.property_value(parameters, name, strict=function.strict)} {terms.text(end)}"
            elif isinstance(schema, Mapping) and ("enum" in schema or "const" in schema):
                value = "(" + " | ".join(terms.text(option + end) for option in texts_of(schema)) + ")"
            else:
                value = terms.lazy_text(end)
            made.append(f"({lead} {value})" if name in required else f"({lead} {value})?")
        return " ".join(made)

    def _call(self, reader: Reader, functions: Functions) -> Parse[None]:
        yield from self._expect(reader, self._function[0])
        name = yield from reader.word(_NAME)
        yield from self._expect(reader, self._function[1])
        if not name:
            raise Malformed
        reader.begin(name)
        schema = functions[name].parameters if name in functions else {}
        emit = reader.sink.arguments
        emit("{")
        num_arguments = 0
        while (yield from self._at(reader, self._key[0])):
            key = yield from reader.word(_KEY)
            yield from self._expect(reader, self._key[1])
            emit(("" if num_arguments == 0 else ", ") + json.dumps(key, ensure_ascii=False) + ": ")
            yield from self._argument(reader, schema.get("properties", {}).get(key, {}))
            num_arguments += 1
        yield from self._at(reader, self._function[2])
        emit("}")
        reader.end()
        yield from reader.closed(self._end.strip())

    def _argument(self, reader: Reader, schema: Any) -> Parse[None]:
        """A value up to its end; the whitespace around it that the format asks for is not part of it."""
        end = self._value[0]
        if end.startswith("\n"):
            yield from reader.at("\n")
        ends = (end, end.strip()) if end != end.strip() else (end,)
        emit = reader.sink.arguments
        if is_text(schema):
            emit('"')
            found = yield from reader.until(lambda text: emit(json_inside(text)), *ends)
            if not found:
                raise Malformed
            emit('"')
            return
        parts: list[str] = []
        if not (yield from reader.until(parts.append, *ends)):
            raise Malformed
        emit(_as_json("".join(parts)))

    @staticmethod
    def _at(reader: Reader, text: str) -> Parse[str]:
        """``text``, with whatever whitespace where it has line breaks and before it; "" if it does not stand here."""
        found = ""
        for line in text.split("\n"):
            yield from reader.space()
            if line and not (found := (yield from reader.at(line))):
                return ""
        return found

    def _expect(self, reader: Reader, text: str) -> Parse[None]:
        if not (yield from self._at(reader, text)) and text.strip():
            raise Malformed


def is_text(schema: Any) -> bool:
    """Whether a value of this schema stands in its tag as it is; without a type it does."""
    if not isinstance(schema, Mapping):
        return True
    if "const" in schema or "enum" in schema:
        return bool(texts_of(schema))
    kinds = schema.get("type")
    if kinds is None:
        return not any(name in schema for name in ("anyOf", "oneOf", "allOf", "$ref", "properties", "items"))
    return bool(kinds in ("string", ["string"]))


def texts_of(schema: Mapping[str, Any]) -> list[str]:
    """The options of a schema all of whose options are strings; else none."""
    options = [schema["const"]] if "const" in schema else schema["enum"]
    return list(options) if isinstance(options, list) and all(isinstance(option, str) for option in options) else []


def _as_json(text: str) -> str:
    """A value that is no text, as JSON; what is neither JSON nor a constant of Python's is a string after all."""
    value = text.strip()
    if value in _CONSTANTS:
        return _CONSTANTS[value]
    try:
        json.loads(value, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return json.dumps(text, ensure_ascii=False)
    return value


def _refuse(name: str) -> None:
    raise ValueError(name)


QWEN3_CODER = Tagged(
    "qwen3_coder",
    (("<tool_call>", "<function=", "<parameter="),),
    calls=("<tool_call>", "\n</tool_call>"),
    function=("\n<function=", ">\n", "</function>"),
    key=("<parameter=", ">\n"),
    value=("\n</parameter>", "\n"),
)
SEED = Tagged(
    "seed_oss",
    (("<seed:tool_call>",),),
    calls=("<seed:tool_call>", "\n</seed:tool_call>"),
    function=("\n<function=", ">\n", "</function>"),
    key=("<parameter=", ">"),
    value=("</parameter>", "\n"),
)
GLM45 = Tagged(
    "glm45",
    (("<tool_call>", "<arg_key>"),),
    calls=("<tool_call>", "</tool_call>"),
    function=("", "\n", ""),
    key=("<arg_key>", "</arg_key>\n<arg_value>"),
    value=("</arg_value>", "\n"),
)
MINIMAX = Tagged(
    "minimax_m2",
    (("<minimax:tool_call>",),),
    calls=("<minimax:tool_call>", "\n</minimax:tool_call>"),
    function=('\n<invoke name="', '">\n', "</invoke>"),
    key=('<parameter name="', '">'),
    value=("</parameter>", "\n"),
)
