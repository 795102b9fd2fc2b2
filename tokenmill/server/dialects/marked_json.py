"""Calls as JSON objects behind a marker: Hermes and Qwen, Granite, Phi-4, and others with other markers.

Hermes, Qwen 2.5 and 3: each call is ``<tool_call>``, a line ``{"name": …, "arguments": {…}}``, ``</tool_call>``.
Granite 3, Phi-4-mini and some others: one marker, then one list of such objects. Either is read whichever is expected.
"""

from __future__ import annotations

import json

from tokenmill.server.dialects.base import Dialect, Function, Functions, call_list, call_object
from tokenmill.server.dialects.lark import Terms
from tokenmill.server.dialects.reader import Parse, Reader


class MarkedJson(Dialect):
    def __init__(
        self,
        name: str,
        start: str,
        end: str,
        signs: tuple[tuple[str, ...], ...],
        *,
        listed: bool = False,
        newlines: bool = False,
        also: tuple[str, ...] = (),
        keys: tuple[str, str] = ("name", "arguments"),
        number: str = "",
    ) -> None:
        """
        Args:
            start, end: the markers around a call, or around the list of calls if ``listed``; ``end`` may be "".
            newlines: a marker and its call stand on lines of their own.
            also: further markers that some models of the family begin with.
            keys: of a call's name and arguments.
            number: of a field before them with the call's number; "" where there is none.
        """
        self.name = name
        self.signs = signs
        self.trigger = start
        self.markers = tuple(marker for marker in (start, end, *also) if marker)
        self._starts = (start, *also)
        self._end = end
        self._keys = keys
        self._number = number
        line = "\n" if newlines else ""
        if listed:
            self.opening, self.tail, self.between, self.closing = line + "[", "}", ", ", "]" + line + end
        else:
            self.tail, self.between = "}" + line + end, line + start
        self._lead = "" if listed else line

    def read(self, reader: Reader, functions: Functions) -> Parse[None]:
        while start := (yield from reader.until(reader.sink.content, *self._starts)):
            yield from reader.attempt(start, lambda: self._calls(reader))

    def head(self, terms: Terms, function: Function) -> str:
        name, arguments = map(json.dumps, self._keys)
        call = f"{name}: {json.dumps(function.name)}, {arguments}: "
        if not self._number:
            return terms.text(f"{self._lead}{{{call}")
        lead = terms.text(f"{self._lead}{{{json.dumps(self._number)}: ")
        return f'{lead} /"[0-9]{{1,3}}"/ {terms.text(", " + call)}'

    def _calls(self, reader: Reader) -> Parse[None]:
        yield from reader.space()
        if (yield from reader.peek()) == "[":
            yield from call_list(reader)
        else:
            yield from call_object(reader)
        yield from reader.closed(self._end)


HERMES = MarkedJson("hermes", "<tool_call>", "</tool_call>", (("<tool_call>",),), newlines=True)
GRANITE = MarkedJson(
    "granite", "<|tool_call|>", "", (("<|tool_call|>", "<|start_of_role|>"),), listed=True, also=("<tool_call>",)
)
PHI4 = MarkedJson("phi4", "<|tool_call|>", "<|/tool_call|>", (("<|tool_call|>", "<|/tool_call|>"),), listed=True)
NEMOTRON = MarkedJson("nemotron", "<TOOLCALL>", "</TOOLCALL>", (("<TOOLCALL>",),), listed=True)
COMMAND = MarkedJson(
    "command_r7b",
    "<|START_ACTION|>",
    "<|END_ACTION|>",
    (("<|START_ACTION|>",),),
    listed=True,
    newlines=True,
    keys=("tool_name", "parameters"),
    number="tool_call_id",
)
COMMAND_R = MarkedJson(
    "command_r",
    "Action:\n```json",
    "```",
    (("Action:", "```json", '"tool_name"'),),
    listed=True,
    newlines=True,
    also=("Action: ```json",),
    keys=("tool_name", "parameters"),
)
