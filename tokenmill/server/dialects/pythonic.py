"""Calls in Python's syntax: ``[get_weather(city='Paris', days=3), now()]`` (Llama 3.2 and 4, LFM2 between markers).

Arguments are literals. They are translated to JSON as they come; nothing is evaluated.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping

from tokenmill.server.dialects.base import Dialect, Function, Functions
from tokenmill.server.dialects.lark import Terms
from tokenmill.server.dialects.reader import Emit, Malformed, Parse, Reader

MAX_NESTING = 32

_NAME = re.compile(r"[A-Za-z0-9_.-]*")
_WORD = re.compile(r"[-+.0-9A-Za-z_]*")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_LOOSE_NUMBER = re.compile(r"[-+]?([0-9]{1,300}\.?[0-9]{0,300}|\.[0-9]{1,300})([eE][-+]?[0-9]{1,3})?")
_CONSTANTS = {"True": "true", "False": "false", "None": "null", "true": "true", "false": "false", "null": "null"}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "0": "\0", "\\": "\\", "'": "'", '"': '"', "\n": ""}
_CODE_DIGITS = {"x": 2, "u": 4, "U": 8}


class Pythonic(Dialect):
    plain_start = r"[^\[\s]"
    opening = "["
    tail = ")"
    between = ", "

    def __init__(
        self, name: str, start: str, end: str, signs: tuple[tuple[str, ...], ...], *, marked: bool = False
    ) -> None:
        """``start`` and ``end``: the markers around the list, which a model writes always (``marked``) or at times."""
        self.name = name
        self.signs = signs
        self.markers = (start, end)
        self._start, self._end = start, end
        self.trigger, self.closing = (start, "]" + end) if marked else ("", "]")

    def read(self, reader: Reader, functions: Functions) -> Parse[None]:
        before = yield from reader.text_of(reader.spaces)
        if (yield from reader.peek()) == "[":
            yield from reader.attempt(before, lambda: self._list(reader, functions))
        else:
            reader.sink.content(before)
        while start := (yield from reader.until(reader.sink.content, self._start)):
            yield from reader.attempt(start, lambda: self._list(reader, functions))

    def head(self, terms: Terms, function: Function) -> str:
        return terms.text(function.name + "(")

    def arguments(self, terms: Terms, function: Function) -> str:
        """``name=value`` in the schema's order, values as JSON: its strings and numbers are Python's too."""
        parameters = function.parameters
        required = frozenset(parameters.get("required", ()))
        items = []
        for name, schema in parameters.get("properties", {}).items():
            value = terms.property_value(parameters, name, strict=function.strict)
            if isinstance(schema, Mapping) and schema.get("type") == "boolean":
                value = '("True" | "False")'
            items.append((f"{terms.text(name + '=')} {value}", name in required))
        return terms.sequence(items)

    def _list(self, reader: Reader, functions: Functions) -> Parse[None]:
        yield from reader.space()
        yield from reader.expect("[")
        while True:
            yield from reader.space()
            yield from self._call(reader, functions)
            yield from reader.space()
            if (yield from reader.expect(",", "]")) == "]":
                break
        yield from reader.closed(self._end)

    def _call(self, reader: Reader, functions: Functions) -> Parse[None]:
        name = yield from reader.word(_NAME)
        if name not in functions:
            raise Malformed
        yield from reader.expect("(")
        reader.begin(name)
        emit = reader.sink.arguments
        emit("{")
        separator = ""
        while True:
            yield from reader.space()
            if (yield from reader.at(")")):
                break
            if separator:
                yield from reader.expect(",")
                yield from reader.space()
                if (yield from reader.at(")")):
                    break
            key = yield from reader.word(_NAME)
            yield from reader.space()
            if not key or not (yield from reader.at("=")):
                raise Malformed
            yield from reader.space()
            emit(f"{separator}{json.dumps(key)}: ")
            yield from python_value(reader, emit)
            separator = ", "
        emit("}")
        reader.end()


def python_value(reader: Reader, emit: Emit, depth: int = 0) -> Parse[None]:
    """Translate one literal to JSON."""
    if depth > MAX_NESTING:
        raise Malformed
    if first := (yield from reader.at("'", '"')):
        emit('"')
        yield from _string(reader, emit, first)
        emit('"')
    elif first := (yield from reader.at("[", "(")):
        yield from _items(reader, emit, "]" if first == "[" else ")", depth)
    elif (yield from reader.at("{")):
        yield from _entries(reader, emit, depth)
    else:
        emit(_scalar((yield from reader.word(_WORD))))


def _scalar(word: str) -> str:
    if word in _CONSTANTS:
        return _CONSTANTS[word]
    if _NUMBER.fullmatch(word):
        return word
    if _LOOSE_NUMBER.fullmatch(word) and math.isfinite(number := float(word)):
        return json.dumps(number)
    raise Malformed


def _items(reader: Reader, emit: Emit, closer: str, depth: int) -> Parse[None]:
    emit("[")
    separator = ""
    while True:
        yield from reader.space()
        if (yield from reader.at(closer)):
            break
        emit(separator)
        yield from python_value(reader, emit, depth + 1)
        separator = ", "
        yield from reader.space()
        if (yield from reader.expect(",", closer)) == closer:
            break
    emit("]")


def _entries(reader: Reader, emit: Emit, depth: int) -> Parse[None]:
    emit("{")
    separator = ""
    while True:
        yield from reader.space()
        if (yield from reader.at("}")):
            break
        quote = yield from reader.expect("'", '"')
        emit(separator + '"')
        yield from _string(reader, emit, quote)
        yield from reader.space()
        yield from reader.expect(":")
        yield from reader.space()
        emit('": ')
        yield from python_value(reader, emit, depth + 1)
        separator = ", "
        yield from reader.space()
        if (yield from reader.expect(",", "}")) == "}":
            break
    emit("}")


def _string(reader: Reader, emit: Emit, quote: str) -> Parse[None]:
    """A string after its opening quote, as the inside of a JSON string."""

    def quoted(text: str) -> None:
        emit(json_inside(text))

    while True:
        found = yield from reader.until(quoted, quote, "\\")
        if found == quote:
            return
        if not found:
            raise Malformed
        char = yield from reader.peek()
        if char in _ESCAPES and char:
            yield from reader.expect(char)
            quoted(_ESCAPES[char])
        elif char in _CODE_DIGITS and char:
            yield from reader.expect(char)
            quoted((yield from _character(reader, _CODE_DIGITS[char])))
        else:
            quoted("\\")


def _character(reader: Reader, num_digits: int) -> Parse[str]:
    digits = yield from reader.peek(num_digits)
    try:
        code = int(digits, 16) if len(digits) == num_digits and digits.isalnum() else -1
        character = chr(code)
    except (ValueError, OverflowError):
        raise Malformed from None
    yield from reader.expect(digits)
    return "\ufffd" if 0xD800 <= code < 0xE000 else character


def json_inside(text: str) -> str:
    """``text`` as it stands inside a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


LLAMA_PYTHONIC = Pythonic(
    "pythonic",
    "<|python_start|>",
    "<|python_end|>",
    (("[func_name1(params_name1=params_value1",), ("<|python_start|>",)),
)
LFM2 = Pythonic(
    "lfm2",
    "<|tool_call_start|>",
    "<|tool_call_end|>",
    (("<|tool_call_start|>",), ("<|tool_list_start|>",)),
    marked=True,
)
