"""Mistral: ``[TOOL_CALLS]`` and a list of objects (tokenizer to v7), or ``[TOOL_CALLS]name[ARGS]{…}`` (v11).

Its templates want ids of nine letters and digits; others are turned into such ones for the template.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any

from tokenmill.server.dialects.base import Dialect, Function, Functions, Message, arguments_value, call_list
from tokenmill.server.dialects.lark import Terms
from tokenmill.server.dialects.reader import Malformed, Parse, Reader

CALLS, ARGS, CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
_NAME = re.compile(r"[A-Za-z0-9_.-]*")
_ID = re.compile(r"[A-Za-z0-9]{9}")


class Mistral(Dialect):
    trigger = CALLS
    markers = (CALLS, ARGS, CALL_ID)

    def __init__(self, name: str, signs: tuple[tuple[str, ...], ...], *, listed: bool) -> None:
        self.name = name
        self.signs = signs
        self._listed = listed
        if listed:
            self.opening, self.tail, self.between, self.closing = "[", "}", ", ", "]"
        else:
            self.between = CALLS

    def read(self, reader: Reader, functions: Functions) -> Parse[None]:
        while (yield from reader.until(reader.sink.content, CALLS)):
            yield from reader.attempt(CALLS, lambda: self._calls(reader))

    def head(self, terms: Terms, function: Function) -> str:
        if self._listed:
            return terms.text(f'{{"name": {json.dumps(function.name)}, "arguments": ')
        return terms.text(function.name + ARGS)

    def history(self, messages: Sequence[Message], functions: Sequence[Function]) -> list[Message]:
        return [_with_short_ids(message) for message in super().history(messages, functions)]

    @staticmethod
    def _calls(reader: Reader) -> Parse[None]:
        yield from reader.space()
        if (yield from reader.peek()) == "[":
            yield from call_list(reader)
            return
        name = yield from reader.word(_NAME)
        if (yield from reader.at(CALL_ID)):
            yield from reader.word(_NAME)
        yield from reader.space()
        yield from reader.at(ARGS)
        yield from reader.space()
        if not name or (yield from reader.peek()) != "{":
            raise Malformed
        reader.begin(name)
        yield from arguments_value(reader, reader.sink.arguments)


def _with_short_ids(message: Message) -> Message:
    made: dict[str, Any] = dict(message)
    if "tool_call_id" in made:
        made["tool_call_id"] = _short_id(made["tool_call_id"])
    if made.get("tool_calls"):
        made["tool_calls"] = [{**call, "id": _short_id(call["id"])} for call in made["tool_calls"]]
    return made


def _short_id(call_id: str) -> str:
    return call_id if _ID.fullmatch(call_id) else hashlib.sha256(call_id.encode()).hexdigest()[:9]


MISTRAL_ARGS = Mistral("mistral_args", ((CALLS, ARGS),), listed=False)
MISTRAL = Mistral("mistral", ((CALLS,),), listed=True)
