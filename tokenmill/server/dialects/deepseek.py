"""DeepSeek V3 and R1 (a JSON block behind the name), and V3.1 (bare JSON)."""

from __future__ import annotations

import re

from tokenmill.server.dialects.base import Dialect, Function, Functions, arguments_value
from tokenmill.server.dialects.lark import Terms
from tokenmill.server.dialects.reader import Malformed, Parse, Reader

CALLS_BEGIN, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL_BEGIN, CALL_END, SEPARATOR = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"
_NAME = re.compile(r"[A-Za-z0-9_.-]*")


class DeepSeek(Dialect):
    trigger = CALLS_BEGIN
    markers = (CALLS_BEGIN, CALLS_END, CALL_BEGIN, CALL_END, SEPARATOR)
    closing = CALLS_END
    arguments_as_text = True

    def __init__(self, name: str, signs: tuple[tuple[str, ...], ...], *, fenced: bool) -> None:
        """``fenced``: arguments stand in a Markdown block of JSON, behind the word ``function`` and the name."""
        self.name = name
        self.signs = signs
        self._fenced = fenced
        self.tail = ("\n```" if fenced else "") + CALL_END
        self.between = "\n" if fenced else ""

    def read(self, reader: Reader, functions: Functions) -> Parse[None]:
        while start := (yield from reader.until(reader.sink.content, CALLS_BEGIN, CALL_BEGIN, CALLS_END)):
            if start == CALL_BEGIN:
                yield from reader.attempt(start, lambda: self._call(reader))

    def head(self, terms: Terms, function: Function) -> str:
        if self._fenced:
            return terms.text(f"{CALL_BEGIN}function{SEPARATOR}{function.name}\n```json\n")
        return terms.text(f"{CALL_BEGIN}{function.name}{SEPARATOR}")

    @staticmethod
    def _call(reader: Reader) -> Parse[None]:
        name = yield from reader.word(_NAME)
        yield from reader.expect(SEPARATOR)
        yield from reader.space()
        fenced = (yield from reader.peek()) != "{"
        if fenced:
            name = yield from reader.word(_NAME)
            yield from reader.space()
            yield from reader.at("```json")
            yield from reader.space()
        if not name or (yield from reader.peek()) != "{":
            raise Malformed
        reader.begin(name)
        yield from arguments_value(reader, reader.sink.arguments)
        if fenced:
            yield from reader.closed("```")
        yield from reader.closed(CALL_END)


DEEPSEEK_V3 = DeepSeek("deepseek_v3", ((CALLS_BEGIN, "```json"),), fenced=True)
DEEPSEEK_V31 = DeepSeek("deepseek_v31", ((CALLS_BEGIN,),), fenced=False)
