"""Kimi K2: a section of calls, each ``functions.name:number`` and its arguments between markers.

Its templates show the ids of earlier calls, which must be of that form.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tokenmill.server.dialects.base import Dialect, Function, Functions, Message, arguments_value
from tokenmill.server.dialects.lark import Terms
from tokenmill.server.dialects.reader import Malformed, Parse, Reader

SECTION_BEGIN, SECTION_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
CALL_BEGIN, ARGUMENTS, CALL_END = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"
_ID = re.compile(r"[A-Za-z0-9_.:-]*")


class Kimi(Dialect):
    name = "kimi_k2"
    signs = ((SECTION_BEGIN,), ("<|im_system|>tool_declare<|im_middle|>",))
    trigger = SECTION_BEGIN
    markers = (SECTION_BEGIN, SECTION_END, CALL_BEGIN, ARGUMENTS, CALL_END)
    tail = CALL_END
    closing = SECTION_END

    def read(self, reader: Reader, functions: Functions) -> Parse[None]:
        while start := (yield from reader.until(reader.sink.content, SECTION_BEGIN, SECTION_END, CALL_BEGIN)):
            if start == CALL_BEGIN:
                yield from reader.attempt(start, lambda: self._call(reader))

    def head(self, terms: Terms, function: Function) -> str:
        return f"{terms.text(f'{CALL_BEGIN}functions.{function.name}:')} /[0-9]{{1,3}}/ {terms.text(ARGUMENTS)}"

    def history(self, messages: Sequence[Message], functions: Sequence[Function]) -> list[Message]:
        names: dict[str, str] = {}
        made = []
        for message in super().history(messages, functions):
            calls = []
            for call in message.get("tool_calls") or ():
                names[call["id"]] = f"functions.{call['function']['name']}:{len(names)}"
                calls.append({**call, "id": names[call["id"]]})
            changed = {**message, "tool_calls": calls} if calls else dict(message)
            if "tool_call_id" in changed:
                changed["tool_call_id"] = names.get(changed["tool_call_id"], changed["tool_call_id"])
            made.append(changed)
        return made

    @staticmethod
    def _call(reader: Reader) -> Parse[None]:
        yield from reader.space()
        call_id = yield from reader.word(_ID)
        name = call_id.removeprefix("functions.").partition(":")[0]
        yield from reader.space()
        yield from reader.expect(ARGUMENTS)
        yield from reader.space()
        if not name or (yield from reader.peek()) != "{":
            raise Malformed
        reader.begin(name)
        yield from arguments_value(reader, reader.sink.arguments)
        yield from reader.closed(CALL_END)
