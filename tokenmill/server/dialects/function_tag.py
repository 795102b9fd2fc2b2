"""Functionary 3.1, and Llama 3.1 where told so: ``<function=name>{…}</function>``."""

from __future__ import annotations

import re

from tokenmill.server.dialects.base import Dialect, Function, Functions, arguments_value
from tokenmill.server.dialects.lark import Terms
from tokenmill.server.dialects.reader import Malformed, Parse, Reader

START, END = "<function=", "</function>"
_NAME = re.compile(r"[A-Za-z0-9_.-]*")


class FunctionTag(Dialect):
    name = "function_tag"
    signs = ((START, END),)
    trigger = START
    markers = (START, END)
    tail = END
    between = START
    arguments_as_text = True

    def read(self, reader: Reader, functions: Functions) -> Parse[None]:
        while (yield from reader.until(reader.sink.content, START)):
            yield from reader.attempt(START, lambda: self._call(reader))

    def head(self, terms: Terms, function: Function) -> str:
        return terms.text(function.name + ">")

    @staticmethod
    def _call(reader: Reader) -> Parse[None]:
        name = yield from reader.word(_NAME)
        yield from reader.expect(">")
        yield from reader.space()
        if not name or (yield from reader.peek()) != "{":
            raise Malformed
        reader.begin(name)
        yield from arguments_value(reader, reader.sink.arguments)
        yield from reader.closed(END)


FUNCTION_TAG = FunctionTag()
