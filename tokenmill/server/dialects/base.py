"""What a family's way of calling functions consists of; each format is a subclass in a file of its own."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenmill.server.dialects.lark import Terms
from tokenmill.server.dialects.reader import Emit, Malformed, Parse, Reader, ignore

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Function:
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """JSON schema of an object."""
    strict: bool = False
    """Its arguments must obey ``parameters``, whatever the model would rather write."""
    wire: Mapping[str, Any] = field(default_factory=dict)
    """The tool just as the client defined it: what a template is given."""


Functions = Mapping[str, Function]


class Dialect(ABC):
    """How one family writes calls. The defaults are those of most."""

    name: str
    signs: tuple[tuple[str, ...], ...] = ()
    """A chat template that holds all texts of one of these is of this family."""
    markers: tuple[str, ...] = ()
    """Texts that may be special tokens and must be seen by the parser."""
    trigger: str = ""
    """What the first call begins with; "" where a call is told by its form alone."""
    plain_start: str = ""
    """Where there is no trigger: a regular expression for the first character of an answer that is no call."""
    opening: str = ""
    """What follows the trigger once, before the first call."""
    tail: str = ""
    """What ends every call."""
    between: str = ""
    """What stands between two calls."""
    closing: str = ""
    """What follows the last call."""
    several: bool = True
    """Whether one answer can hold several calls."""
    answer: str = ""
    """What an answer that is no call begins with."""
    marks_all: bool = False
    """Every part of an answer is marked, so it is read in this way also where nothing may be called."""
    arguments_as_text: bool = False
    """The template wants the arguments of earlier calls as JSON text and not as an object."""

    @abstractmethod
    def read(self, reader: Reader, functions: Functions) -> Parse[None]:
        """Read an answer to its end."""

    @abstractmethod
    def head(self, terms: Terms, function: Function) -> str:
        """In Lark: what a call begins with, up to its arguments."""

    def arguments(self, terms: Terms, function: Function) -> str:
        """In Lark: the arguments."""
        return terms.json_schema({**function.parameters, "type": "object"}, strict=function.strict)

    def tools(self, functions: Iterable[Function]) -> list[dict[str, Any]] | None:
        """What the chat template is given as ``tools``."""
        return [dict(function.wire) for function in functions]

    def history(self, messages: Sequence[Message], functions: Sequence[Function]) -> list[Message]:
        """A conversation as the family's templates want it; ``functions`` is empty where none may be called."""
        names: dict[str, str] = {}
        made = []
        for message in messages:
            calls = message.get("tool_calls") or []
            names |= {call["id"]: call["function"]["name"] for call in calls}
            if calls and not self.arguments_as_text:
                made.append({**message, "tool_calls": [_with_object(call) for call in calls]})
            elif message["role"] == "tool":
                made.append({"name": names.get(message["tool_call_id"], ""), **message})
            else:
                made.append(message)
        return made


def _with_object(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except (ValueError, RecursionError):
        return call
    return {**call, "function": {**function, "arguments": arguments}} if isinstance(arguments, dict) else call


def call_object(reader: Reader, known: Functions | None = None) -> Parse[None]:
    """One call written as ``{"name": …, "arguments": {…}}`` (or ``tool_name``, ``parameters``); the rest is ignored.

    ``known``: a name that is not among these is no call.
    """
    name: str | None = None
    arguments: list[str] = []
    begun = False
    yield from reader.expect("{")
    while True:
        yield from reader.space()
        field_name = yield from reader.text_of(reader.json_string)
        yield from reader.space()
        yield from reader.expect(":")
        yield from reader.space()
        if field_name in ("name", "tool_name"):
            name = yield from reader.text_of(reader.json_string)
            if not name or (known is not None and name not in known):
                raise Malformed
        elif field_name in ("arguments", "parameters"):
            if begun:
                yield from reader.json_value(ignore)
            elif name is None:
                arguments.clear()
                yield from arguments_value(reader, arguments.append)
            elif (yield from reader.peek()) in ("{", '"', "n"):
                begun = True
                reader.begin(name)
                yield from arguments_value(reader, reader.sink.arguments)
            else:
                raise Malformed
        else:
            yield from reader.json_value(ignore)
        yield from reader.space()
        if (yield from reader.expect(",", "}")) == "}":
            break
    if name is None:
        raise Malformed
    if not begun:
        reader.begin(name)
        reader.sink.arguments("".join(arguments) or "{}")
    reader.end()


def arguments_value(reader: Reader, emit: Emit) -> Parse[None]:
    """Arguments as an object, or as a string that holds one, or null for none."""
    first = yield from reader.peek()
    if first == "{":
        yield from reader.json_value(emit)
    elif first == '"':
        yield from reader.json_string(emit)
    elif (yield from reader.at("null")):
        emit("{}")
    else:
        raise Malformed


def call_list(reader: Reader, known: Functions | None = None) -> Parse[None]:
    """``[call, call, …]`` of such objects."""
    yield from reader.expect("[")
    while True:
        yield from reader.space()
        yield from call_object(reader, known)
        yield from reader.space()
        if (yield from reader.expect(",", "]")) == "]":
            return
